"""Datasets of HDF5 files; read by h5py, which lets one thread into the library at a time."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igneous_airflow.errors import IgneousError, InvalidParameter, UnreadableSource
from igneous_airflow.sources.protocol import Array, ArrayFacts, Findings, Part, worthwhile_block
from igneous_airflow.storage.overlap import Overlap
from igneous_airflow.storage.parts import FileInParts

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"
_FEWEST_AXES = 2


@dataclass(frozen=True)
class Hdf5Array:
    """A dataset of an HDF5 file, which stays open as long as this."""

    facts: ArrayFacts
    dataset: "h5py.Dataset"
    url: str

    def read(self, part: Part, overlap: Overlap) -> Array:  # noqa: ARG002 - one thread at a time
        """Read a part; raises UnreadableSource."""
        try:
            array: Array = self.dataset[part]
        except IgneousError:
            raise
        except Exception as error:
            raise UnreadableSource(
                f"{self.url}, dataset {self.dataset.name}, cannot be read: {error}"
            ) from error
        return array

    def look(self) -> Findings:
        """Nothing that opening has not found."""
        return Findings()


def open_hdf5(file: FileInParts, name: str | None) -> Hdf5Array:
    """Open a dataset, or the only one that could be a volume when no name is given.

    Raises UnreadableSource, and InvalidParameter naming the datasets there are.
    """
    import h5py

    is_local = file.folder.url.startswith("file://")
    try:
        opened = h5py.File(
            file.url.removeprefix("file://") if is_local else file.stream(), "r", locking=False
        )
        volumes = _volumes(opened)
    except IgneousError:
        raise
    except Exception as error:
        raise UnreadableSource(f"{file.url} is no HDF5 that can be read: {error}") from error
    dataset = _chosen(volumes, name, file.url)
    shape, dtype = tuple(map(int, dataset.shape)), dataset.dtype
    block = dataset.chunks or worthwhile_block(shape, dtype.itemsize, file.worthwhile)
    labels = "".join(dimension.label for dimension in dataset.dims)
    axes = labels if len(labels) == len(set(labels)) == len(shape) else None
    return Hdf5Array(ArrayFacts(shape, dtype, tuple(block), axes), dataset, file.url)


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
