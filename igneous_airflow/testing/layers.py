"""Tiny layers, written and read by software that is not this package; used by tests.

tensorstore writes them, so that nothing here depends on the code under test; cloud-volume and
tensorstore read back what stages wrote.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igneous_airflow.geometry.bbox import Vec3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """How a tiny layer is stored; resolution in nm."""

    layer_type: str = "image"
    chunk_size: tuple[int, int, int] | Vec3 = (8, 8, 8)
    voxel_offset: tuple[int, int, int] | Vec3 = (0, 0, 0)
    resolution: tuple[float, float, float] = (8, 8, 40)
    encoding: str = "raw"


def random_voxels(size: Vec3, dtype: str = "uint8", *, channels: int = 1) -> "NDArray[np.generic]":
    """Voxels of a seed that depends on nothing: blobs of 3 x 3 x 1 equal voxels, a third of them 0.

    Integers use the dtype's whole range, its extremes included. Shape (x, y, z, channel), Fortran.
    """
    import numpy as np

    random = np.random.default_rng(7)
    shape = (-(-size.x // 3), -(-size.y // 3), size.z, channels)
    if np.dtype(dtype).kind == "f":
        values = random.normal(0, 1000, 50)
    else:
        limits = np.iinfo(dtype)
        values = random.integers(limits.min, limits.max, 50, dtype=dtype, endpoint=True)
        values[:2] = limits.min, limits.max
    blobs = values.astype(dtype)[random.integers(0, 50, shape)]
    blobs[random.random(shape) < 1 / 3] = 0
    voxels = blobs.repeat(3, axis=0).repeat(3, axis=1)[: size.x, : size.y]
    return np.asfortranarray(voxels)


def write_layer(path: Path, voxels: "NDArray[Any]", spec: LayerSpec | None = None) -> str:
    """Write an (x, y, z, channel) array as the only mip of a layer, and return the layer's URL."""
    spec = spec or LayerSpec()
    import tensorstore

    block = {"compressed_segmentation_block_size": [8, 8, 8]}
    scale: Mapping[str, Any] = {
        "size": list(voxels.shape[:3]),
        "voxel_offset": list(spec.voxel_offset),
        "chunk_size": list(spec.chunk_size),
        "resolution": list(spec.resolution),
        "encoding": spec.encoding,
        **(block if spec.encoding == "compressed_segmentation" else {}),
    }
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {
                "type": spec.layer_type,
                "data_type": voxels.dtype.name,
                "num_channels": voxels.shape[3],
            },
            "scale_metadata": scale,
            "store_data_equal_to_fill_value": True,
            "context": {"file_io_sync": False},
        },
        create=True,
    ).result()
    if voxels.size:
        store.write(voxels).result()
    return f"file://{path}"


def read_with_tensorstore(path: Path, mip: int) -> "NDArray[Any]":
    """Read all of a mip, which must be uncompressed, as an (x, y, z, channel) array."""
    import tensorstore

    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "scale_index": mip,
            "fill_missing_data_reads": False,
        }
    ).result()
    array: NDArray[Any] = store.read().result()
    return array


def read_with_cloudvolume(path: Path, mip: int) -> "NDArray[Any]":
    """Read all of a mip of any encoding and compression as an (x, y, z, channel) array."""
    import numpy as np
    from cloudvolume import CloudVolume

    volume = CloudVolume(f"file://{path}", mip=mip, progress=False, parallel=1, fill_missing=False)
    return np.asarray(volume[:])


def assert_mips(
    path: Path,
    expected: "Sequence[NDArray[Any]]",
    first: int = 0,
    read: "Callable[[Path, int], NDArray[Any]]" = read_with_tensorstore,
) -> None:
    """Check that the mips from the first on are the expected ones, and that no more are there."""
    import numpy as np

    assert len(info_of(path)["scales"]) == first + len(expected)
    for mip, voxels in enumerate(expected, start=first):
        np.testing.assert_array_equal(read(path, mip), voxels, err_msg=f"mip {mip}")


def info_of(path: Path) -> dict[str, Any]:
    """The info of a layer, as it stands in its file."""
    info: dict[str, Any] = json.loads((path / "info").read_text())
    return info
