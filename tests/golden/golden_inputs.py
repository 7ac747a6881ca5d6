"""The small inputs of the golden record, made by libraries of others and from fixed seeds."""

import io
import json
import lzma
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import tensorstore
import tifffile
import zarr
from numpy.typing import NDArray
from PIL import Image

Voxels = NDArray[Any]
Three = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Spec:
    """How a layer is stored; resolution in nm."""

    kind: str = "image"
    chunk: Three = (8, 8, 8)
    offset: Three = (0, 0, 0)
    resolution: tuple[float, float, float] = (8, 8, 40)
    encoding: str = "raw"


def blobs(size: Three, dtype: str = "uint8", *, channels: int = 1, seed: int = 7) -> Voxels:
    """Blobs of 3 x 3 x 1 equal voxels, a third of them 0, over the dtype's whole range.

    Shape (x, y, z, channel), Fortran.
    """
    random = np.random.default_rng(seed)
    shape = (-(-size[0] // 3), -(-size[1] // 3), size[2], channels)
    if np.dtype(dtype).kind == "f":
        values = random.normal(0, 1000, 50)
    else:
        limits = np.iinfo(dtype)
        values = random.integers(limits.min, limits.max, 50, dtype=dtype, endpoint=True)
        values[:2] = limits.min, limits.max
    voxels = values.astype(dtype)[random.integers(0, 50, shape)]
    voxels[random.random(shape) < 1 / 3] = 0
    voxels = voxels.repeat(3, axis=0).repeat(3, axis=1)[: size[0], : size[1]]
    return np.asfortranarray(voxels)


def tissue(size: Three, dtype: str = "uint8", *, channels: int = 1) -> Voxels:
    """Smooth gray values with some noise, dimmer from section to section."""
    x, y, z, c = np.ogrid[: size[0], : size[1], : size[2], :channels]
    waves = 100 + 60 * np.sin(x / 9 + c) * np.cos(y / 11) - 2 * z
    noise = np.random.default_rng(5).normal(0, 6, (*size, channels))
    values = (waves + noise).clip(0, 255) * (np.iinfo(dtype).max // 255)
    return np.asfortranarray(values.astype(dtype))


def objects(size: Three, dtype: str = "uint64") -> Voxels:
    """A ball, a bar and a box that touch the edges of the volume and each other's blocks."""
    x, y, z = np.ogrid[: size[0], : size[1], : size[2]]
    labels = np.zeros(size, dtype, order="F")
    labels[(x - 14) ** 2 + (y - 13) ** 2 + (z - 9) ** 2 < 90] = 1
    labels[:, 3:7, 4:8] = 2
    labels[20:, 15:, 2:] = np.iinfo(dtype).max
    labels[size[0] - 3, 1, 1] = 5  # dust
    return labels[..., np.newaxis]


def write_layer(path: Path, voxels: Voxels, spec: Spec | None = None) -> str:
    """Write an (x, y, z, channel) array as the only mip of a layer, and return the layer's path."""
    spec = spec or Spec()
    scale: dict[str, object] = {
        "size": list(voxels.shape[:3]),
        "voxel_offset": list(spec.offset),
        "chunk_size": list(spec.chunk),
        "resolution": list(spec.resolution),
        "encoding": spec.encoding,
    }
    if spec.encoding == "compressed_segmentation":
        scale["compressed_segmentation_block_size"] = [8, 8, 8]
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {
                "type": spec.kind,
                "data_type": voxels.dtype.name,
                "num_channels": voxels.shape[3],
            },
            "scale_metadata": scale,
            "store_data_equal_to_fill_value": True,
            "context": {"file_io_sync": False},
        },
        create=True,
    ).result()
    store.write(voxels).result()
    return str(path)


def zyx(voxels: Voxels) -> Voxels:
    """Turn (x, y, z, channel) into z, y, x, and channels last where there are several."""
    array = voxels.transpose(2, 1, 0, 3)
    return np.ascontiguousarray(array[..., 0] if array.shape[3] == 1 else array)


def write_sections(folder: Path, voxels: Voxels, suffix: str, **options: Any) -> str:
    """Write a file for each section: TIFF, PNG or JPEG."""
    folder.mkdir(parents=True)
    for z, section in enumerate(zyx(voxels)):
        path = folder / f"section {z}{suffix}"
        if suffix == ".tif":
            photometric = "rgb" if section.ndim == 3 else "minisblack"
            tifffile.imwrite(path, section, photometric=photometric, **options)
        else:
            Image.fromarray(section).save(path, **options)
    return str(folder)


def write_pages(path: Path, voxels: Voxels, **options: Any) -> str:
    """Write one TIFF with a page for each section."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path) as file:
        for page in zyx(voxels):
            file.write(page, photometric="minisblack", contiguous=False, **options)
    return str(path)


def write_npy(path: Path, array: Voxels) -> str:
    """Write an array as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, array)
    return str(path)


def write_hdf5(path: Path, array: Voxels, dataset: str = "main", **options: Any) -> str:
    """Write an array as a data set of an HDF5 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(dataset, data=array, **options)
    return str(path)


def write_zarr(path: Path, array: Voxels, **options: Any) -> str:
    """Write an array as a Zarr array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    zarr.create_array(path, data=array, **options)
    return str(path)


def write_ome_zarr(path: Path, mips: Sequence[Voxels]) -> str:
    """Write arrays (z, y, x), each half the one before in y and x, as an OME-Zarr image 0.4."""
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    datasets = []
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for mip, array in enumerate(mips):
        group.create_array(str(mip), data=array, chunks=(4, 16, 16))
        scale = {"type": "scale", "scale": [40, 4 * 2**mip, 4 * 2**mip]}
        datasets.append({"path": str(mip), "coordinateTransformations": [scale]})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    return str(path)


def write_nifti(path: Path, voxels: Voxels) -> str:
    """Write voxels of 5 x 5 x 30 micrometers as NIfTI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(voxels[..., 0], np.diag([5, 5, 30, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, path)
    return str(path)


def write_build(folder: Path, voxels: Voxels, chunk: Three, offset: Three) -> str:
    """Write build chunks: arrays of numpy, deflated, named by their boxes."""
    folder.mkdir(parents=True)
    grid = [range(0, n, step) for n, step in zip(voxels.shape[:3], chunk, strict=True)]
    for corner in product(*grid):
        part = voxels[tuple(slice(a, a + n) for a, n in zip(corner, chunk, strict=True))]
        low = [a + b for a, b in zip(corner, offset, strict=True)]
        name = "_".join(f"{a}-{a + n}" for a, n in zip(low, part.shape[:3], strict=True))
        stream = io.BytesIO()
        np.save(stream, part)
        (folder / name).write_bytes(zlib.compress(stream.getvalue()))
    return str(folder)


def write_cubes(folder: Path, labels: Voxels, edge: int = 24, overlap: int = 8) -> str:
    """Write labels (x, y, z) of 16 bits, and their lowest bytes as grays, in overlapping cubes."""
    half, step = overlap // 2, edge - overlap
    padded = np.pad(labels, half, mode="reflect")
    starts = [range(0, n, step) for n in labels.shape]
    for number, corner in enumerate(product(*starts)):
        cube = padded[tuple(slice(a, a + edge) for a in corner)]
        _write_cube(folder / f"cube {number}", cube, [a - half for a in corner])
    return str(folder)


def _write_cube(folder: Path, cube: Voxels, low: list[int]) -> None:
    (folder / "jpg").mkdir(parents=True)
    resolution = (16, 16, 40)
    high = [a + n for a, n in zip(low, cube.shape, strict=True)]
    metadata = {
        "segment_id_type": "UInt16",
        "affinity_type": "Float32",
        "bounding_box_type": "UInt16",
        "size_type": "UInt32",
        "image_type": "UInt8",
        "num_segments": int(cube.max()) + 1,
        "num_edges": 0,
        "chunk_voxel_dimensions": list(cube.shape),
        "voxel_resolution": list(resolution),
        "resolution_units": "nanometers",
        "physical_offset_min": [a * n for a, n in zip(low, resolution, strict=True)],
        "physical_offset_max": [a * n for a, n in zip(high, resolution, strict=True)],
    }
    (folder / "metadata.json").write_text(json.dumps(metadata))
    stream = lzma.compress(cube.tobytes("F"), format=lzma.FORMAT_ALONE, preset=0)
    (folder / "segmentation.lzma").write_bytes(stream)
    for z in range(cube.shape[2]):
        section = (cube[:, :, z] & 255).astype(np.uint8)
        Image.fromarray(section.T).save(folder / "jpg" / f"{z}.jpg", quality=100)


def write_json(path: Path, value: object) -> str:
    """Write a value as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return str(path)
