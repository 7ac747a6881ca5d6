"""Datasets of HDF5 files; read by h5py, which lets one thread into the library at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import IgneousError, InvalidParameter, UnreadableSource
from igneous_airflow.sources.protocol import (
    Array,
    ArrayFacts,
    Findings,
    Part,
    VoxelArray,
    look_at_a_block,
    require,
    worthwhile_block,
)
from igneous_airflow.sources.raw import raw_array
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts, PartStream

if TYPE_CHECKING:
    import h5py

_FEWEST_AXES = 2


@dataclass(frozen=True)
class Dataset:
    """A dataset, mostly one that is stored in chunks; its file stays open as long as this.

    With a `stream`, which comes from a bucket, the chunks of a part are fetched by many threads
    before h5py asks for them one by one.
    """

    facts: ArrayFacts
    dataset: "h5py.Dataset"
    file: FileInParts
    stream: PartStream | None

    def read(self, part: Part, overlap: Overlap) -> Array:
        """Read a part; raises UnreadableSource."""
        try:
            if self.stream is not None and self.dataset.chunks is not None:
                fetched = overlap.map(self._fetch, self._stored_chunks(part))
                self.stream.ahead = {start: content for (start, _), content in fetched}
            array: Array = self.dataset[part]
        except IgneousError:
            raise
        except Exception as error:
            raise UnreadableSource(
                f"{self.file.url}, dataset {self.dataset.name}, cannot be read: {error}"
            ) from error
        finally:
            if self.stream is not None:
                self.stream.ahead = {}
        return array

    def _fetch(self, place: tuple[int, int]) -> bytearray:
        return self.file.read(*place)

    def _stored_chunks(self, part: Part) -> Iterator[tuple[int, int]]:
        """Where in the file the chunks of a part lie, and their bytes."""
        spans = [
            range(span.start // edge * edge, span.stop, edge)
            for span, edge in zip(part, self.dataset.chunks, strict=True)
        ]
        for corner in product(*spans):
            stored = self.dataset.id.get_chunk_info_by_coord(corner)
            if stored.byte_offset is not None:
                yield stored.byte_offset, stored.size

    def look(self) -> Findings:
        """Whether a chunk can be read."""
        return look_at_a_block(self)


def open_hdf5(file: FileInParts, name: str | None) -> VoxelArray:
    """Open a dataset, or the only one that could be a volume when no name is given.

    Raises UnreadableSource, and InvalidParameter naming the datasets there are.
    """
    require("h5py", "HDF5")
    import h5py

    is_local = file.folder.url.startswith("file://")
    stream = None if is_local else file.stream()
    try:
        opened = h5py.File(stream or file.url.removeprefix("file://"), "r", locking=False)
        dataset = _chosen(_volumes(opened), name, file.url)
        shape, dtype = tuple(map(int, dataset.shape)), dataset.dtype
        labels = "".join(dimension.label for dimension in dataset.dims).lower()
        axes = labels if len(labels) == len(set(labels)) == len(shape) else None
        facts = ArrayFacts(
            shape,
            dtype,
            dataset.chunks or worthwhile_block(shape, dtype.itemsize, file.worthwhile),
            axes,
            overlap_width=file.overlap_width,
            reads_ahead=not is_local,
        )
        is_as_read = dataset.id.get_type().equal(h5py.h5t.py_create(dtype))
        offset = dataset.id.get_offset() if is_as_read and not opened.userblock_size else None
    except IgneousError:
        raise
    except Exception as error:
        raise UnreadableSource(f"{file.url} is no HDF5 that can be read: {error}") from error
    if offset is not None:  # it lies in the file as it is
        return raw_array(file, offset, replace(facts, reads_ahead=False), file.worthwhile)
    return Dataset(facts, dataset, file, stream)


def _volumes(file: "h5py.File") -> "dict[str, h5py.Dataset]":
    """Datasets of numbers that have at least two axes, by their names."""
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        shape = getattr(item, "shape", None)
        if shape is not None and len(shape) >= _FEWEST_AXES and item.dtype.kind in "biuf":
            found[name] = item

    file.visititems(visit)
    return found


def _chosen(volumes: "dict[str, h5py.Dataset]", name: str | None, url: str) -> "h5py.Dataset":
    wanted = None if name is None else name.strip("/")
    if wanted is None and len(volumes) == 1:
        (wanted,) = volumes
    if wanted in volumes:
        return volumes[wanted]
    there = ", ".join(
        f"{name} ({'x'.join(map(str, item.shape))} {item.dtype})" for name, item in volumes.items()
    )
    problem = "holds" if name is None else f"has no dataset {name!r} of numbers; it holds"
    way_out = "set dataset to one of them" if volumes else "choose another file"
    raise InvalidParameter(f"dataset: {url} {problem} {there or 'no volumes'}: {way_out}")
