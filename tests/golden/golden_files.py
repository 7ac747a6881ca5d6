"""Cases of the golden record that make layers of files of other formats, and change voxels."""

from collections.abc import Sequence
from pathlib import Path

import golden_inputs as inputs
import numpy as np
from golden_case import OFFSET, Case, Step, step
from golden_inputs import Spec

SIZE = (37, 21, 9)


def _ingest(root: Path, source: str, **parameters: object) -> list[Step]:
    common = {"chunk_size": "8,8,8", "max_mips": 1, "resolution": "4.6,4.6,45"}
    return [step("ingest", source=source, dest=f"{root}/dest", **{**common, **parameters})]


def ingest_tiff_sections(root: Path) -> Sequence[Step]:
    """Deflated 8 bits in several tasks, beginning at an offset."""
    voxels = inputs.tissue(SIZE)
    source = inputs.write_sections(root / "sources" / "stack", voxels, ".tif", compression="zlib")
    return _ingest(root, source, voxel_offset=",".join(map(str, OFFSET)), shape="32,16,8")


def ingest_tiff_pages(root: Path) -> Sequence[Step]:
    """One file of 16 bits, compressed by LZW."""
    voxels = inputs.blobs(SIZE, "uint16")
    return _ingest(root, inputs.write_pages(root / "sources" / "v.tif", voxels, compression="lzw"))


def ingest_npy(root: Path) -> Sequence[Step]:
    """Floats in Fortran order."""
    array = inputs.blobs(SIZE, "float32")[..., 0]
    source = inputs.write_npy(root / "sources" / "v.npy", array)
    return _ingest(root, source, axes="xyz", compress="zstd")


def ingest_hdf5(root: Path) -> Sequence[Step]:
    """Labels of 32 bits in chunks, in a chosen data set."""
    array = inputs.zyx(inputs.blobs(SIZE, "uint32"))
    source = inputs.write_hdf5(
        root / "sources" / "v.h5", array, "a/labels", chunks=(4, 8, 8), compression="gzip"
    )
    wishes = {"dataset": "a/labels", "axes": "zyx", "encoding": "compressed_segmentation"}
    return _ingest(root, source, layer_type="segmentation", **wishes)


def ingest_zarr2(root: Path) -> Sequence[Step]:
    """Labels of 64 bits."""
    array = inputs.zyx(inputs.blobs(SIZE, "uint64"))
    source = inputs.write_zarr(
        root / "sources" / "v.zarr", array, zarr_format=2, chunks=(5, 16, 16)
    )
    wishes = {"axes": "zyx", "encoding": "compresso", "skip_empty": "skip"}
    return _ingest(root, source, layer_type="segmentation", **wishes)


def ingest_zarr3(root: Path) -> Sequence[Step]:
    """Three channels."""
    array = inputs.zyx(inputs.tissue(SIZE, channels=3))
    source = inputs.write_zarr(root / "sources" / "v.zarr", array, chunks=(5, 16, 16, 1))
    return _ingest(root, source, axes="zyxc", encoding="png")


def ingest_ome_zarr(root: Path) -> Sequence[Step]:
    """The finest of two mips, with its resolution."""
    fine = inputs.zyx(inputs.tissue(SIZE))
    source = inputs.write_ome_zarr(root / "sources" / "v.zarr", [fine, fine[:, ::2, ::2]])
    return _ingest(root, source, resolution=None)


def ingest_png_sections(root: Path) -> Sequence[Step]:
    """Colors, whose sections 3 and 5 are missing."""
    voxels = inputs.tissue(SIZE, channels=3)
    source = inputs.write_sections(root / "sources" / "stack", voxels, ".png")
    for z in (3, 5):
        Path(source, f"section {z}.png").unlink()
    return _ingest(root, source, fill_missing=True, compress="br")


def ingest_jpeg_sections(root: Path) -> Sequence[Step]:
    """Grays, in the default chunks."""
    voxels = inputs.tissue(SIZE)
    source = inputs.write_sections(root / "sources" / "stack", voxels, ".jpg", quality=90)
    return _ingest(root, source, chunk_size=None, factor="2,2,2")


def ingest_nifti(root: Path) -> Sequence[Step]:
    """Packed, 16 bits, with the resolution of its header."""
    source = inputs.write_nifti(root / "sources" / "v.nii.gz", inputs.tissue(SIZE, "uint16"))
    return _ingest(root, source, resolution=None)


def ingest_build_chunks(root: Path) -> Sequence[Step]:
    """Labels, beginning where the names of the chunks say."""
    voxels = inputs.blobs(SIZE, "uint16")
    source = inputs.write_build(root / "sources" / "build", voxels, (10, 9, 8), (-20, 9, -8))
    return _ingest(root, source, layer_type="segmentation", shape="16,16,8")


def _numbers(size: tuple[int, int, int]) -> np.ndarray:
    return inputs.blobs(size, "uint16")[..., 0]


def hypersquare_labels(root: Path) -> Sequence[Step]:
    """Cubes of labels, in several tasks."""
    src = inputs.write_cubes(root / "sources" / "cubes", _numbers((37, 20, 17)))
    wishes = {"overlap": 8, "shape": "32,32,16", "max_mips": 1, "voxel_offset": "100,-7,3"}
    return [step("hypersquare_ingest", src=src, dest=f"{root}/dest", **wishes)]


def hypersquare_image(root: Path) -> Sequence[Step]:
    """The gray sections of the cubes, in chunks of eight."""
    src = inputs.write_cubes(root / "sources" / "cubes", _numbers((37, 20, 17)))
    wishes = {"content": "image", "overlap": 8, "max_mips": 1, "chunk_size": "8,8,8"}
    return [step("hypersquare_ingest", src=src, dest=f"{root}/dest", **wishes)]


def hypersquare_consensus(root: Path) -> Sequence[Step]:
    """Segments of four volumes, whose borders are not those of chunks."""
    known = np.array([0, 1, 2, 7, 12, 65535], np.uint16)
    segments = known[inputs.blobs((40, 24, 16), "uint8") % 6]
    src = inputs.write_layer(
        root / "sources" / "segments", np.asfortranarray(segments), Spec("segmentation")
    )
    volumes = {
        "0-13_0-24_0-16": 1,
        "13-40_0-11_0-16": 2,
        "13-40_11-24_0-9": 5,
        "13-40_11-24_9-16": 70_000,
    }
    cells = {"1": {"45": [7, 12], "46": [65535]}, "2": {"45": [1]}, "5": {"99": [2, 7]}}
    maps = {
        "volume_map_path": inputs.write_json(root / "sources" / "volumes.json", volumes),
        "consensus_map_path": inputs.write_json(root / "sources" / "cells.json", cells),
    }
    wishes = {"max_mips": 1, "shape": "16,16,16"}
    return [step("hypersquare_consensus", src=src, dest=f"{root}/dest", **maps, **wishes)]


def _remap(root: Path, map_path: str, highest: int) -> list[Step]:
    labels = inputs.blobs((33, 17, 9), "uint32") % (highest + 1)
    spec = Spec("segmentation", offset=OFFSET)
    src = inputs.write_layer(root / "sources" / "labels", np.asfortranarray(labels), spec)
    wishes = {"max_mips": 1, "shape": "16,16,16"}
    return [step("watershed_remap", src=src, dest=f"{root}/dest", map_path=map_path, **wishes)]


def _map(highest: int) -> np.ndarray:
    random = np.random.default_rng(5)
    values = random.integers(1, 2**64 - 1, highest + 1, dtype=np.uint64)
    values[0] = 0
    return values


def watershed_npy(root: Path) -> Sequence[Step]:
    """A map of 64 bits in an array of numpy."""
    return _remap(root, inputs.write_npy(root / "sources" / "map.npy", _map(999)), 999)


def watershed_hdf5(root: Path) -> Sequence[Step]:
    """A map of 32 bits in HDF5, in packed chunks."""
    values = (_map(999) % 2**32).astype(np.uint32)
    path = root / "sources" / "map.h5"
    return _remap(root, inputs.write_hdf5(path, values, chunks=(128,), compression="gzip"), 999)


def quantize_affinities(root: Path) -> Sequence[Step]:
    """One of three channels, between bounds of one's own."""
    values = np.random.default_rng(4).normal(0.5, 0.3, (33, 17, 9, 3)).astype(np.float32)
    spec = Spec("affinities", offset=OFFSET)
    src = inputs.write_layer(root / "sources" / "values", np.asfortranarray(values), spec)
    wishes = {"channel": 1, "low": 0.1, "high": 0.9, "max_mips": 1, "shape": "16,16,16"}
    return [step("quantize_affinities", src=src, dest=f"{root}/dest", **wishes)]


def levels_elsewhere(root: Path) -> Sequence[Step]:
    """Histograms of a part of 16 bits, on a sample, in a folder of their own."""
    voxels = inputs.tissue((4200, 40, 3), "uint16") // 257
    layer = inputs.write_layer(root / "layer", voxels, Spec(chunk=(1050, 40, 1), offset=OFFSET))
    wishes = {
        "bounds": "3-4100_0-33_12-14",
        "shape": "4200,40,1",
        "coverage_factor": 0.3,
        "seed": 5,
    }
    return [step("luminance_levels", layer=layer, levels_path=f"{root}/elsewhere", **wishes)]


def contrast_by_sections(root: Path) -> Sequence[Step]:
    """Each section by its own levels, with a mip on the way."""
    layer = inputs.write_layer(root / "layer", inputs.tissue((48, 32, 6)), Spec(offset=OFFSET))
    wishes = {"clip_fraction": "0.02,0.01", "max_mips": 1, "shape": "32,16,8"}
    return [
        step("luminance_levels", layer=layer, coverage_factor=1, shape="64,64,2"),
        step("contrast_normalization", src=layer, dest=f"{root}/dest", **wishes),
    ]


def contrast_of_all(root: Path) -> Sequence[Step]:
    """All sections alike, within bounds, moved; and by values that are given."""
    voxels = inputs.tissue((48, 32, 6), "uint16") // 257
    layer = inputs.write_layer(root / "layer", voxels)
    wishes = {"scope": "global", "max_mips": 0, "minval": 5, "maxval": 250}
    return [
        step("luminance_levels", layer=layer, coverage_factor=1),
        step("contrast_normalization", src=layer, dest=f"{root}/dest", **wishes),
        step(
            "contrast_normalization",
            src=layer,
            dest=f"{root}/given",
            clip_values="40,200",
            translate="-4,5,2",
            **wishes,
        ),
    ]


CASES: tuple[Case, ...] = (
    ingest_tiff_sections,
    ingest_tiff_pages,
    ingest_npy,
    ingest_hdf5,
    ingest_zarr2,
    ingest_zarr3,
    ingest_ome_zarr,
    ingest_png_sections,
    ingest_jpeg_sections,
    ingest_nifti,
    ingest_build_chunks,
    hypersquare_labels,
    hypersquare_image,
    hypersquare_consensus,
    watershed_npy,
    watershed_hdf5,
    quantize_affinities,
    levels_elsewhere,
    contrast_by_sections,
    contrast_of_all,
)
