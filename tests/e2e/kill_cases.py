"""What the kill campaign runs: stages on tiny layers, with odd edges that begin anywhere."""

from collections.abc import Callable
from pathlib import Path

import golden_inputs as inputs
from attempts import Step
from golden_inputs import Spec

from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.stages import complete

OFFSET = (3, -7, 11)
_ENTRY = "20260102T030405Z-0a1b2c"  # given, so that twins have the same

#: Fills an empty folder, and says which stages are to be run on what is in it.
Case = Callable[[Path], list[Step]]


def downsample_image(root: Path) -> list[Step]:
    layer = inputs.write_layer(root / "layer", inputs.blobs((37, 21, 9)), Spec(offset=OFFSET))
    return [("downsample", {"layer": layer, "num_mips": 2})]


def downsample_labels(root: Path) -> list[Step]:
    spec = Spec("segmentation", (16, 16, 8), (-16, -24, -8), encoding="compressed_segmentation")
    layer = inputs.write_layer(root / "layer", inputs.blobs((50, 30, 12), "uint32"), spec)
    return [("downsample", {"layer": layer, "num_mips": 1, "skip_empty": "skip"})]


def transfer(root: Path) -> list[Step]:
    spec = Spec(chunk=(37, 21, 1), offset=OFFSET)
    src = inputs.write_layer(root / "src", inputs.blobs((37, 21, 9)), spec)
    wishes = {"chunk_size": "8,8,8", "shape": "16,16,8", "max_mips": 1}
    return [("transfer", {"src": src, "dest": f"{root}/dest", **wishes})]


def mesh(root: Path) -> list[Step]:
    spec = Spec("segmentation", (16, 16, 8), OFFSET)
    layer = inputs.write_layer(root / "layer", inputs.objects((40, 36, 20)), spec)
    return [
        ("mesh", {"layer": layer, "shape": "16,16,20", "trash_entry": _ENTRY}),
        ("mesh_manifest", {"layer": layer, "magnitude": 1}),
    ]


def contrast(root: Path) -> list[Step]:
    layer = inputs.write_layer(root / "layer", inputs.tissue((40, 31, 7)), Spec(offset=OFFSET))
    whole = {"mip": 0, "coverage_factor": 1}
    wishes = {"mip": 0, "shape": "16,16,8", "skip_downsamples": True}
    return [
        ("luminance_levels", {"layer": layer, **whole}),
        ("contrast_normalization", {"src": layer, "dest": f"{root}/dest", **wishes}),
    ]


def _layer_with_mips(root: Path) -> str:
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 21, 9)), Spec(offset=OFFSET))
    complete(Downsample(layer=layer, num_mips=2))
    return layer


def delete(root: Path) -> list[Step]:
    gone = {"mip": 1, "num_mips": 1, "confirm": True, "keep_deleted": False, "trash_entry": _ENTRY}
    return [("delete", {"layer": _layer_with_mips(root), **gone})]


def delete_to_the_trash(root: Path) -> list[Step]:
    gone = {"mip": 1, "num_mips": 1, "confirm": True, "keep_deleted": True, "trash_entry": _ENTRY}
    return [("delete", {"layer": _layer_with_mips(root), **gone})]


CASES: tuple[Case, ...] = (
    downsample_image,
    transfer,
    mesh,
    delete_to_the_trash,
    downsample_labels,
    contrast,
    delete,
)
