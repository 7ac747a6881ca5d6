"""Which files of a layer the viewer serves: those that Neuroglancer asks for, by their names.

What is not named here is never opened, whatever else lies in the layer's folder. Formats:
https://github.com/google/neuroglancer/tree/master/src/datasource/precomputed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from posixpath import normpath
from typing import Any

import numpy as np

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.storage.folder_names import ODD_CHARACTERS, folder_problem
from igneous_airflow.storage.info import INFO_BYTES, Info, Scale

#: Bytes of a file, or of a part of one, that are served at once. Of a chunk larger than that no
#: browser makes anything.
LARGEST = 1 << 27
_MANIFEST_BYTES = 1 << 24
_HEADER_BYTES = 1 << 16  # that an encoding, or a compression, may add

_LABEL = "(?:0|[1-9][0-9]{0,19})"
_SHARD = re.compile(r"[0-9a-f]{1,16}\.shard")
_MANIFEST = re.compile(f"{_LABEL}:[0-9]{{1,3}}")
_OBJECT = re.compile(rf"{_LABEL}(?:\.index)?")  # of several resolutions, or a skeleton
_FRAGMENT = re.compile(f"{_LABEL}:[0-9]{{1,3}}:[-0-9A-Za-z_.]{{1,200}}")
#: The files of the folders that an info names: by its keys.
_FOLDERS: dict[str, tuple[tuple[re.Pattern[str], int], ...]] = {
    "mesh": (
        (re.compile("info"), INFO_BYTES),
        (_MANIFEST, _MANIFEST_BYTES),
        (_FRAGMENT, LARGEST),
        (_OBJECT, LARGEST),
        (_SHARD, LARGEST),
    ),
    "skeletons": ((re.compile("info"), INFO_BYTES), (_OBJECT, LARGEST), (_SHARD, LARGEST)),
    "segment_properties": ((re.compile("info"), LARGEST),),
}


@dataclass(frozen=True, slots=True)
class ServedFile:
    """A file of the format: its name in the layer, and how many bytes may be served at once."""

    name: str
    most: int


def served_file(info: Info, path: str) -> ServedFile | None:
    """The file of a layer that a path names; None for whatever is not of the format."""
    if path == "info":
        return ServedFile(path, INFO_BYTES)
    folder, _, name = path.rpartition("/")
    most = max((*_in_scales(info, folder, name), *_in_folders(info, folder, name)), default=None)
    return None if most is None else ServedFile(path, most)


def folder_inside(key: object) -> str | None:
    """The folder in a layer that a key of its info names; None unless it is plainly inside.

    A key that may be read in two ways names no folder.
    """
    if not isinstance(key, str) or not key.isprintable():
        return None
    if folder_problem(key) or ODD_CHARACTERS.search(key):
        return None
    return normpath(key)


def _in_scales(info: Info, folder: str, name: str) -> Iterator[int]:
    """How long a file may be, for each scale that has one of this name."""
    for scale, entry in zip(info.scales, info.data["scales"], strict=True):
        if folder_inside(scale.key) != folder:
            continue
        if scale.sharded:
            if _SHARD.fullmatch(name):
                yield LARGEST
        elif (size := _chunk_size(scale, entry, name)) is not None:
            yield min(_chunk_bytes(info, scale, size), LARGEST)


def _chunk_size(scale: Scale, entry: dict[str, Any], name: str) -> Vec3 | None:
    """The size in voxels of the chunk that has a name; None where there is none."""
    try:
        box = BoundingBox.parse(name)
        grids = [Grid(scale.bounds, Vec3.of(size)) for size in entry["chunk_sizes"]]
    except (InvalidParameter, TypeError):
        return None
    if any(min(grid.cell) > 0 and grid.is_cell(box) for grid in grids):
        return box.size
    return None


def _chunk_bytes(info: Info, scale: Scale, size: Vec3) -> int:
    """How many bytes the file of a chunk may have, with all that its encoding may add."""
    raw = size.product * info.channels * np.dtype(info.data_type).itemsize
    if scale.encoding == "raw":
        return raw + _HEADER_BYTES
    headers = 8 * size.ceil_div(scale.block_size or 8).product  # of compressed_segmentation
    return 2 * raw + headers + _HEADER_BYTES


def _in_folders(info: Info, folder: str, name: str) -> Iterator[int]:
    for key, patterns in _FOLDERS.items():
        if folder_inside(info.data.get(key)) == folder:
            yield from (most for pattern, most in patterns if pattern.fullmatch(name))
