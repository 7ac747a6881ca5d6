"""Cases of the golden record that make meshes, and chains."""

from collections.abc import Sequence
from pathlib import Path

import golden_inputs as inputs
import numpy as np
from golden_case import OFFSET, Case, Chain, Step, step
from golden_inputs import Spec

LABELS = Spec("segmentation", (16, 16, 8), OFFSET)


def _segmentation(root: Path, dtype: str = "uint64") -> str:
    return inputs.write_layer(root / "layer", inputs.objects((40, 36, 20), dtype), LABELS)


def mesh_simplified(root: Path) -> Sequence[Step]:
    """Fragments of several blocks, manifests, spatial index."""
    layer = _segmentation(root)
    return [
        step("mesh", layer=layer, shape="16,16,20"),
        step("mesh_manifest", layer=layer, magnitude=1),
    ]


def mesh_exact_part(root: Path) -> Sequence[Step]:
    """Exact surfaces of some labels under new names, open at the edges, uncompressed."""
    layer = _segmentation(root, "uint32")
    return [
        step(
            "mesh",
            layer=layer,
            shape="17,13,29",
            bounds="5-30_-7-20_12-25",
            mesh_dir="meshes",
            simplification=False,
            closed_dataset_edges=False,
            spatial_index=False,
            remap_table="1:7,2:8,5:9",
            exclude_object_ids="8",
            dust_threshold=5,
            compress="none",
        ),
        step("mesh_manifest", layer=layer),
    ]


def mesh_on_a_new_grid(root: Path) -> Sequence[Step]:
    """Meshes of a coarser mip, in place of those that were there: one fragment is stale."""
    labels = np.zeros((40, 36, 20, 1), np.uint64, order="F")
    labels[24:35, 22:33, 5:12] = 7
    layer = inputs.write_layer(root / "layer", labels, LABELS)
    return [
        step("mesh", layer=layer, shape="20,18,20", max_simplification_error=10),
        step("downsample", layer=layer, num_mips=1),
        step("mesh", layer=layer, mip=1, shape="20,18,20"),
        step("mesh", layer=layer, mip=1, shape="20,18,20", object_ids="7,9", new_grid=True),
        step("mesh_manifest", layer=layer),
        step("mesh_manifest", layer=layer, remove_stale=True),
    ]


def chain_ingest_image(root: Path) -> Chain:
    """`igneous_ingest` of an image with its contrast."""
    voxels = inputs.tissue((50, 40, 6))
    source = inputs.write_sections(root / "sources" / "stack", voxels, ".tif")
    raw, image = f"{root}/raw", f"{root}/image"
    made = {"resolution": "4,4,40", "chunk_size": "16,16,2", "skip_downsamples": True}
    return Chain(
        [
            step("ingest", source=source, dest=raw, **made),
            step("luminance_levels", layer=raw, coverage_factor=1),
            step("contrast_normalization", src=raw, dest=image, mip=0, skip_downsamples=True),
            step("downsample", layer=image, mip=0, num_mips=2),
        ]
    )


def chain_ingest_segmentation(root: Path) -> Chain:
    """`igneous_ingest` of labels with their meshes."""
    array = inputs.zyx(inputs.objects((40, 36, 20)))
    source = inputs.write_npy(root / "sources" / "labels.npy", array)
    dest = f"{root}/dest"
    made = {"axes": "zyx", "layer_type": "segmentation", "resolution": "8,8,40"}
    made |= {"chunk_size": "16,16,8", "encoding": "compressed_segmentation"}
    return Chain(
        [
            step("ingest", source=source, dest=dest, skip_downsamples=True, **made),
            step("downsample", layer=dest, mip=0, num_mips=2),
            step("mesh", layer=dest, shape="20,18,20"),
            step("mesh_manifest", layer=dest),
        ]
    )


def chain_contrast(root: Path) -> Chain:
    """`igneous_contrast`, of a part."""
    layer = inputs.write_layer(root / "layer", inputs.tissue((48, 32, 8)), Spec(offset=OFFSET))
    dest, part = f"{root}/dest", {"mip": 0, "bounds": "3-35_-7-25_11-19"}
    return Chain(
        [
            step("luminance_levels", layer=layer, coverage_factor=0.5, **part),
            step("contrast_normalization", src=layer, dest=dest, skip_downsamples=True, **part),
            step("downsample", layer=dest, num_mips=1, **part),
        ]
    )


def chain_mesh(root: Path) -> Chain:
    """`igneous_mesh`."""
    layer = _segmentation(root, "uint16")
    return Chain([step("mesh", layer=layer, compress="br"), step("mesh_manifest", layer=layer)])


def chain_segmentation(root: Path) -> Chain:
    """`igneous_segmentation`, with meshes of the mip that the first step makes."""
    layer = _segmentation(root)
    return Chain(
        [
            step("downsample", layer=layer, mip=0, num_mips=2),
            step("mesh", layer=layer, mip=1, shape="10,18,20"),
            step("mesh_manifest", layer=layer),
        ]
    )


def chain_that_cannot_start(root: Path) -> Chain:
    """A mistake in the last step shows before the first one runs."""
    layer = _segmentation(root)
    return Chain(
        [
            step("downsample", layer=layer, mip=0, num_mips=1),
            step("mesh", layer=layer, mip=2),
        ]
    )


CASES: tuple[Case, ...] = (
    mesh_simplified,
    mesh_exact_part,
    mesh_on_a_new_grid,
    chain_ingest_image,
    chain_ingest_segmentation,
    chain_contrast,
    chain_mesh,
    chain_segmentation,
    chain_that_cannot_start,
)
