"""Meshes of a layer: fragments, manifests, and what tells about them; names and bytes.

A *fragment* is the surface of one label in one cell, a *manifest* names all fragments of a label.
Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/meshes.md,
"legacy single-resolution mesh format". The spatial index is cloud-volume's: a file for each cell
with the box in nm of every label. The folder `cells` is ours: a *record* for each cell that has
been meshed says which labels have fragments there, so that a missing one is noticed.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from igneous_airflow.errors import CorruptChunk, InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.storage.codecs import compress_bytes, decompress_bytes
from igneous_airflow.storage.commit import commit
from igneous_airflow.storage.files import Folder, StoredFile
from igneous_airflow.storage.info import INFO_BYTES
from igneous_airflow.storage.mesh_info import Begun, MeshInfo, read_object
from igneous_airflow.storage.mesh_record import Record
from igneous_airflow.storage.partials import remove_abandoned
from igneous_airflow.storage.strict_json import parse_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

_INFO, _RECORDS = "info", "cells"
_Content = TypeVar("_Content")
Boxes = dict[int, list[int]]  # the lowest and highest corner in nm, by label
_LIST_BYTES = 1 << 28  # of a manifest or a record: some million cells or labels
_FRAGMENT_BYTES = 1 << 30  # some ten million triangles, in a cell
_OF_A_LABEL = re.compile(r"([1-9][0-9]*):0(?::(.+))?", re.DOTALL)
#: Names that a manifest may give: of files in the directory itself, wherever it is stored.
_FRAGMENT = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,1024}")


def read_name(name: str) -> tuple[int, str]:
    """The label of a file, and the cell of a fragment, as text; no cell for a manifest.

    The label is 0 for a file that is neither.
    """
    match = _OF_A_LABEL.fullmatch(name)
    return (0, "") if match is None else (int(match[1]), match[2] or "")


def encode_fragment(vertices: "NDArray[Any]", faces: "NDArray[Any]") -> bytes:
    """The bytes of a fragment: vertices (n, 3) in nm, faces (m, 3)."""
    import numpy as np

    count = np.array(len(vertices), "<u4")
    return count.tobytes() + vertices.astype("<f4").tobytes() + faces.astype("<u4").tobytes()


def decode_fragment(content: bytes) -> "tuple[NDArray[Any], NDArray[Any]]":
    """Vertices (n, 3) in nm and faces (m, 3) of a fragment; raises ValueError when it is none."""
    import numpy as np

    count = int.from_bytes(content[:4], "little")
    vertices = np.frombuffer(content, "<f4", 3 * count, 4).reshape(count, 3)
    faces = np.frombuffer(content, "<u4", offset=4 + vertices.nbytes).reshape(-1, 3)
    if faces.max(initial=0) >= max(count, 1):
        raise ValueError(f"a face has vertex {faces.max()} of {count}")
    return vertices, faces.astype(np.int64)


def _fragments(manifest: Any) -> list[str]:
    """The names in a manifest; raises ValueError, TypeError and KeyError for a broken one."""
    names = manifest["fragments"]
    if not isinstance(names, list):
        raise TypeError(f"its fragments are {names!r:.100}")
    for name in names:
        if not isinstance(name, str) or not _FRAGMENT.fullmatch(name):
            raise ValueError(f"{name!r:.200} is not the name of a fragment beside it")
    return names


class MeshFolder:
    """The mesh directory of a layer."""

    def __init__(self, layer: Folder, directory: str) -> None:
        self.layer = layer
        self.directory = directory

    @property
    def url(self) -> str:
        """The directory's address."""
        return f"{self.layer.url}/{self.directory}"

    def read_info(self) -> MeshInfo | None:
        """Read the directory's info; None when there is none, or one that tells of no grid.

        Raises InvalidInfo for meshes of another format.
        """
        text = self._read(_INFO, INFO_BYTES)
        return None if text is None else MeshInfo.of(read_object(text, self.url), self.url)

    def read_keys(self) -> dict[str, Any]:
        """All that the directory's info says; nothing when there is none. Raises InvalidInfo."""
        text = self._read(_INFO, INFO_BYTES)
        return {} if text is None else read_object(text, self.url)

    def add_part(
        self,
        wanted: MeshInfo,
        spatial_index: Mapping[str, Any] | None,
        begun: Begun | None = None,
        start: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the directory's info, with its parts and those that are there on the same grid.

        `begun` is the run that will mesh them, `start` what a new info says besides. Whatever
        others add meanwhile is kept. Records of another grid are removed. Raises StorageUnavailable
        when the change never holds.
        """

        def read() -> dict[str, Any]:
            return self.read_keys() or dict(start or {})

        def change(data: dict[str, Any]) -> dict[str, Any]:
            present = MeshInfo.of(data, self.url)
            if present is not None and not present.has_grid_of(wanted):
                # before the new info is there, so that they never pass for records of its grid
                self.layer.delete_folder(f"{self.directory}/{_RECORDS}")
            return wanted.added_to(data, self.url, spatial_index, begun)

        self._change_info(read, change)

    def end_part(self, begun: Begun) -> None:
        """Say in the directory's info that a run has finished; it may have been said before."""

        def change(data: dict[str, Any]) -> dict[str, Any]:
            present = MeshInfo.of(data, self.url)
            if present is None or present == (ended := present.without(begun)):
                return data
            return ended.data(None)

        self._change_info(self.read_keys, change)

    def _change_info(
        self,
        read: Callable[[], dict[str, Any]],
        change: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        def write(data: dict[str, Any]) -> None:
            self._write_json(_INFO, data)

        commit(self.layer, f"{self.directory}/{_INFO}", read, change, write)

    def fragment_name(self, label: int, cell: str) -> str:
        """The name of a fragment's file, below the layer; `cell` is its box as text."""
        return f"{self.directory}/{label}:0:{cell}"

    def record_name(self, cell: BoundingBox) -> str:
        """The name of a record's file, below the layer."""
        return f"{self.directory}/{_RECORDS}/{cell}"

    def manifest_name(self, label: int) -> str:
        """The name of a manifest's file, below the layer."""
        return f"{self.directory}/{label}:0"

    def write_fragment(self, label: int, cell: BoundingBox, content: bytes, compress: str) -> int:
        """Write the encoded fragment of a label in a cell and return its stored bytes."""
        return self._write(f"{label}:0:{cell}", content, "model/mesh", compress)

    def write_manifest(self, label: int, cells: Iterable[str]) -> int:
        """Write the manifest of a label, uncompressed, and return its bytes.

        `cells` are those of its fragments, as text.
        """
        names = [f"{label}:0:{cell}" for cell in cells]
        return self._write_json(f"{label}:0", {"fragments": names})

    def drop_fragments(self, label: int, cells: Collection[str]) -> None:
        """Remove fragments of a label, by their cells, and their names from its manifest.

        The manifest is changed first, or removed with its last fragment, so that it never names one
        that is not there. One that cannot be read is left to `mesh_manifest`.
        """
        gone = {f"{label}:0:{cell}" for cell in cells}
        named = self._named_by(label)
        if gone & set(named):
            left = [name.partition(":0:")[2] for name in named if name not in gone]
            if left:
                self.write_manifest(label, left)
            else:
                self.delete([f"{label}:0"])
        self.delete(sorted(gone))

    def _named_by(self, label: int) -> list[str]:
        """The fragments that a label's manifest names; none when there is no manifest of ours."""
        try:
            manifest = self._read(f"{label}:0", _LIST_BYTES)
            names = [] if manifest is None else _fragments(parse_json(manifest))
            ours = all(read_name(name)[0] == label for name in names)
        except (InvalidInfo, ValueError, TypeError, KeyError):
            return []
        return list(names) if ours else []

    def read_mesh(self, label: int) -> "tuple[NDArray[Any], NDArray[Any]] | None":
        """Read the fragments of a label, as its manifest names them, as one mesh.

        Vertices are (n, 3) in nm, faces (m, 3); vertices of neighbouring fragments are not joined.
        None when there is no manifest. Raises InvalidInfo for a file that is missing or broken, and
        for a manifest that names files elsewhere.
        """
        import numpy as np

        manifest = self._read(f"{label}:0", _LIST_BYTES)
        if manifest is None:
            return None
        vertices, faces = np.empty((0, 3), np.float32), np.empty((0, 3), np.int64)
        name = f"{label}:0"
        try:
            for name in _fragments(parse_json(manifest)):
                more_vertices, more_faces = decode_fragment(
                    self._read(name, _FRAGMENT_BYTES) or b""
                )
                faces = np.concatenate([faces, more_faces + len(vertices)])
                vertices = np.concatenate([vertices, more_vertices])
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInfo(f"{self.url}/{name} is missing or broken: {error}") from error
        return vertices, faces

    def stored_bytes(self) -> dict[int, int]:
        """The size of each label's fragments."""
        sizes: dict[int, int] = {}
        for name, size in self.layer.sizes(self.directory):
            label, cell = read_name(name)
            if cell:
                sizes[label] = sizes.get(label, 0) + size
        return sizes

    def write_spatial_index(
        self, name: str, boxes: Mapping[int, Sequence[int]], compress: str
    ) -> int:
        """Write the spatial index of a cell: the lowest and highest corner in nm of each label.

        cloud-volume takes whole numbers only.
        """
        text = json.dumps({str(label): box for label, box in boxes.items()}, separators=(",", ":"))
        return self._write(name, text.encode(), "application/json", compress)

    def read_spatial_index(self, name: str) -> dict[int, list[int]] | None:
        """The boxes in nm of a block's labels; None when there is no file of ours."""
        with suppress(InvalidInfo, ValueError, TypeError, AttributeError):
            data = parse_json(self._read(name, _LIST_BYTES) or b"")
            return {int(label): [int(nm) for nm in box] for label, box in data.items()}
        return None

    def update_spatial_index(
        self, name: str, change: Callable[[Boxes | None], Boxes], compress: str
    ) -> int:
        """Change the spatial index of a block, which others may change meanwhile.

        Returns its stored bytes. Raises StorageUnavailable when the change never holds.
        """

        def write(boxes: Boxes | None) -> int:
            return self.write_spatial_index(name, boxes or {}, compress)

        return self._update(name, partial(self.read_spatial_index, name), change, write)

    def update_record(self, box: BoundingBox, change: Callable[[Record | None], Record]) -> int:
        """Change the record of a block, which others may change meanwhile.

        `change` is given None where there is none, or one that is damaged. Returns the stored
        bytes. Raises StorageUnavailable when the change never holds.
        """

        def write(record: Record | None) -> int:
            return 0 if record is None else self.write_record(box, record)

        name = f"{_RECORDS}/{box}"
        return self._update(name, partial(self.readable_record, box), change, write)

    def _update(
        self,
        name: str,
        read: Callable[[], _Content],
        change: Callable[[_Content], _Content],
        write: Callable[[_Content], int],
    ) -> int:
        """Change a file and return its stored bytes.

        It is written in any case, also when nothing changes: it may be there twice, in two
        compressions.
        """
        size: int | None = None

        def save(state: tuple[bool, _Content]) -> None:
            nonlocal size
            size = write(state[1])

        def saved(state: tuple[bool, _Content]) -> tuple[bool, _Content]:
            return True, change(state[1])

        path = f"{self.directory}/{name}"
        commit(self.layer, path, lambda: (size is not None, read()), saved, save)
        return size or 0

    def write_record(self, box: BoundingBox, record: Record) -> int:
        """Say that a block has been meshed; returns the stored bytes."""
        text = json.dumps(record.data(), separators=(",", ":"))
        return self._write(f"{_RECORDS}/{box}", text.encode(), "application/json", "gzip")

    def read_record(self, box: BoundingBox) -> Record | None:
        """Read what meshing a cell left; None when it has not been meshed. Raises InvalidInfo."""
        text = self._read(f"{_RECORDS}/{box}", _LIST_BYTES)
        if text is None:
            return None
        try:
            return Record.of(parse_json(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInfo(
                f"{self.url}/{_RECORDS}/{box} is no record of ours: {error}"
            ) from error

    def readable_record(self, box: BoundingBox) -> Record | None:
        """The same, None also for a record that is damaged: then nothing is known of the cell."""
        with suppress(InvalidInfo):
            return self.read_record(box)
        return None

    def recorded(self) -> set[str]:
        """The boxes of all cells that have been meshed, as text."""
        return set(self.layer.names(f"{self.directory}/{_RECORDS}"))

    def remove_abandoned(self) -> None:
        """Remove what killed processes left half written, here and among the records."""
        remove_abandoned(self.layer.url, self.directory, depth=1)

    def delete_records(self, boxes: Iterable[BoundingBox]) -> None:
        """Forget that cells have been meshed."""
        self.delete(f"{_RECORDS}/{box}" for box in boxes)

    def names(self) -> Iterator[str]:
        """The names of all files directly in the directory."""
        return self.layer.names(self.directory)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """The names of all files directly in the directory, and their stored bytes."""
        return self.layer.sizes(self.directory)

    def sizes_starting(self, starts: Sequence[str]) -> Iterator[tuple[str, int]]:
        """Those of them that start in one of these ways, with their stored bytes."""
        return self.layer.sizes_starting(self.directory, starts)

    def names_starting(self, starts: Sequence[str]) -> Iterator[str]:
        """Those of them that start in one of these ways."""
        return self.layer.names_starting(self.directory, starts)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files of the directory; they may be absent."""
        for name in names:
            self.layer.delete(f"{self.directory}/{name}")

    def _read(self, name: str, most: int) -> bytes | None:
        stored = self.layer.read(f"{self.directory}/{name}")
        if stored is None:
            return None
        try:
            return bytes(decompress_bytes(stored, most))
        except CorruptChunk as error:
            raise InvalidInfo(f"{self.url}/{name} cannot be read: {error}") from error

    def _write(self, name: str, content: bytes, content_type: str, compress: str) -> int:
        compression = {"auto": "gzip", "none": ""}.get(compress, compress)
        stored = compress_bytes(content, compression, grey=False)
        self.layer.write(f"{self.directory}/{name}", stored, content_type=content_type)
        return len(stored.content)

    def _write_json(self, name: str, data: Mapping[str, Any]) -> int:
        content = json.dumps(data).encode()
        self.layer.write(
            f"{self.directory}/{name}", StoredFile(content), content_type="application/json"
        )
        return len(content)
