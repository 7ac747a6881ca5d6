"""Cases of the golden record that make mips, delete them, or are refused."""

from collections.abc import Sequence
from pathlib import Path

import golden_inputs as inputs
import numpy as np
from golden_case import OFFSET, Case, Step, step
from golden_inputs import Spec


def downsample_odd_image(root: Path) -> Sequence[Step]:
    """Averages, positive and negative offset, odd edges, as many mips as there can be."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((37, 21, 9)), Spec(offset=OFFSET))
    return [step("downsample", layer=layer, num_mips=6)]


def downsample_uint16_cubes(root: Path) -> Sequence[Step]:
    """Isotropic pooling, zstd."""
    voxels = inputs.tissue((40, 24, 20), "uint16")
    layer = inputs.write_layer(root / "layer", voxels, Spec(resolution=(16, 16, 16)))
    return [step("downsample", layer=layer, num_mips=2, factor="2,2,2", compress="zstd")]


def downsample_compressed_segmentation(root: Path) -> Sequence[Step]:
    """Modes of 32 bits, negative offset, brotli."""
    spec = Spec("segmentation", (16, 16, 8), (-16, -24, -8), encoding="compressed_segmentation")
    layer = inputs.write_layer(root / "layer", inputs.blobs((50, 30, 12), "uint32"), spec)
    return [step("downsample", layer=layer, num_mips=2, compress="br", compress_level=5)]


def downsample_sparse_labels(root: Path) -> Sequence[Step]:
    """Sparse modes of 64 bits with x kept; background is left out."""
    labels = inputs.blobs((20, 40, 24), "uint64")
    labels[:, 20:] = 0
    spec = Spec("segmentation", offset=OFFSET, resolution=(40, 8, 8))
    layer = inputs.write_layer(root / "layer", labels, spec)
    return [
        step("downsample", layer=layer, num_mips=2, axis="x", sparse=True, skip_empty="skip"),
    ]


def downsample_labels_by_other_factors(root: Path) -> Sequence[Step]:
    """Modes of cubes, and of windows of 16 voxels, of 8 and of 64 bits."""
    spec = Spec("segmentation", resolution=(8, 8, 8))
    cubes = inputs.write_layer(root / "cubes", inputs.blobs((20, 18, 12)), spec)
    planes = inputs.write_layer(root / "planes", inputs.blobs((40, 34, 3), "uint64"), spec)
    return [
        step("downsample", layer=cubes, num_mips=2, factor="2,2,2", compress="zstd"),
        step("downsample", layer=cubes, mip=1, num_mips=1, factor="2,1,1"),
        step("downsample", layer=planes, num_mips=1, factor="4,4,1"),
    ]


def downsample_averages_of_other_types(root: Path) -> Sequence[Step]:
    """Negative integers, integers whose sums need more than 64 bits, and zeros left out."""
    steps = []
    for dtype, sparse in (
        ("int16", False),
        ("int32", False),
        ("uint64", False),
        ("uint8", True),
        ("float32", True),
    ):
        layer = inputs.write_layer(root / dtype, inputs.blobs((20, 14, 3), dtype))
        steps.append(step("downsample", layer=layer, num_mips=1, sparse=sparse))
    return steps


def downsample_float32(root: Path) -> Sequence[Step]:
    """Averages of floats, uncompressed."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((33, 17, 9), "float32"))
    return [step("downsample", layer=layer, num_mips=2, compress="none")]


def downsample_three_channels_of_jpeg(root: Path) -> Sequence[Step]:
    """Colors, lossy."""
    voxels = inputs.tissue((40, 24, 8), channels=3)
    spec = Spec(chunk=(16, 16, 8), encoding="jpeg")
    layer = inputs.write_layer(root / "layer", voxels, spec)
    return [step("downsample", layer=layer, num_mips=2)]


def downsample_narrow_maximum(root: Path) -> Sequence[Step]:
    """One voxel wide on an axis, two on another."""
    spec = Spec(chunk=(16, 16, 16), offset=(1, -1, 0))
    layer = inputs.write_layer(root / "layer", inputs.blobs((131, 1, 2), "uint16"), spec)
    return [step("downsample", layer=layer, num_mips=3, method="max", factor="2,2,2")]


def downsample_part_with_holes(root: Path) -> Sequence[Step]:
    """Minimum, a part, missing chunks, background of its own that is deleted."""
    voxels = inputs.blobs((48, 32, 8))
    voxels[16:32] = 255
    layer = inputs.write_layer(root / "layer", voxels, Spec(offset=(8, 0, -8)))
    (root / "layer" / "8_8_40" / "40-48_8-16_-8-0").unlink()
    return [
        step("downsample", layer=layer, num_mips=1, compress="none", fill_missing=True),
        step(
            "downsample",
            layer=layer,
            num_mips=1,
            bounds="24-56_0-32_-8-0",
            method="min",
            fill_missing=True,
            background_color=255,
            skip_empty="delete",
            compress="none",
        ),
    ]


def downsample_twice_from_the_coarsest(root: Path) -> Sequence[Step]:
    """Striding, png, mip -1."""
    spec = Spec(chunk=(16, 16, 4), encoding="png")
    layer = inputs.write_layer(root / "layer", inputs.tissue((50, 34, 6)), spec)
    once = step("downsample", layer=layer, mip=-1, num_mips=1, method="striding")
    return [once, once]


def downsample_other_chunks(root: Path) -> Sequence[Step]:
    """Chunks of sections that become deep, in another encoding."""
    voxels = inputs.blobs((70, 66, 5), "uint32")
    spec = Spec("segmentation", chunk=(35, 33, 1))
    layer = inputs.write_layer(root / "layer", voxels, spec)
    return [
        step("downsample", layer=layer, num_mips=1, preserve_chunk_size=False),
        step("downsample", layer=layer, mip=1, num_mips=1, encoding="crackle", chunk_size="9,9,5"),
    ]


def delete_mips(root: Path) -> Sequence[Step]:
    """The two coarser ones of three."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 24, 8)), Spec(offset=OFFSET))
    return [
        step("downsample", layer=layer, num_mips=2, compress="none"),
        step("delete", layer=layer, mip=1, num_mips=2, confirm=True),
    ]


def delete_part(root: Path) -> Sequence[Step]:
    """A part of two mips; unconfirmed at first."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 24, 8)), Spec(offset=OFFSET))
    part = {"layer": layer, "num_mips": 2, "bounds": "19-43_-7-9_11-19"}
    return [
        step("downsample", layer=layer, num_mips=1, compress="none"),
        step("delete", **part),
        step("delete", confirm=True, **part),
    ]


def refused(root: Path) -> Sequence[Step]:
    """Plans that name why a stage cannot start."""
    layer = inputs.write_layer(root / "layer", inputs.blobs((40, 24, 8)), Spec(offset=OFFSET))
    floats = inputs.write_layer(root / "floats", np.ones((8, 8, 8, 1), np.float32, order="F"))
    (root / "sources").mkdir()
    return [
        step("downsample", layer=f"{root}/nothing"),
        step("downsample", layer=layer, bounds="0-8_0-8_0-8", mip=3),
        step("downsample", layer=layer, bounds="4-8_0-8_11-19"),
        step("downsample", layer=layer, background_color=300, encoding="crackle"),
        step("transfer", src=floats, dest=f"{root}/dest", encoding="jpeg"),
        step("transfer", src=layer, dest=floats),
        step("delete", layer=layer, mip=4),
        step("ingest", source=f"{root}/sources", dest=f"{root}/dest"),
        step("luminance_levels", layer=floats),
        step("contrast_normalization", src=layer, dest=f"{root}/dest"),
        step("mesh", layer=layer),
        step("mesh_manifest", layer=layer),
        step("watershed_remap", src=layer, dest=f"{root}/dest", map_path=f"{root}/map.npy"),
        step("quantize_affinities", src=layer, dest=f"{root}/dest", channel=4),
        step("hypersquare_ingest", src=f"{root}/sources", dest=f"{root}/dest"),
        step(
            "hypersquare_consensus",
            src=layer,
            dest=f"{root}/dest",
            volume_map_path=f"{root}/a.json",
            consensus_map_path=f"{root}/b.json",
        ),
    ]


CASES: tuple[Case, ...] = (
    downsample_odd_image,
    downsample_uint16_cubes,
    downsample_compressed_segmentation,
    downsample_sparse_labels,
    downsample_labels_by_other_factors,
    downsample_averages_of_other_types,
    downsample_float32,
    downsample_three_channels_of_jpeg,
    downsample_narrow_maximum,
    downsample_part_with_holes,
    downsample_twice_from_the_coarsest,
    downsample_other_chunks,
    delete_mips,
    delete_part,
    refused,
)
