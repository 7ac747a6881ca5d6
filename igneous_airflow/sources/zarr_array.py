"""Arrays of Zarr 2 and 3, and what OME-Zarr says about their axes and voxels.

Formats: https://zarr-specs.readthedocs.io and https://ngff.openmicroscopy.org (0.2 to 0.5). The
arrays are read by zarr; the metadata of OME are read here, being a little JSON.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan, prod
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from igneous_airflow.errors import (
    IgneousError,
    InvalidParameter,
    SourceNotFound,
    UnreadableSource,
)
from igneous_airflow.sources.protocol import (
    Array,
    ArrayFacts,
    Findings,
    Part,
    Resolution,
    require,
)
from igneous_airflow.storage.files import Folder
from igneous_airflow.storage.overlap import Overlap, overlap_width

if TYPE_CHECKING:
    import zarr

MARKS = ("zarr.json", ".zarray", ".zgroup")  # files that make a folder an array or a group
_NANOMETRES = {
    "angstrom": 0.1,
    "nanometer": 1.0,
    "micrometer": 1e3,
    "millimeter": 1e6,
    "centimeter": 1e7,
    "meter": 1e9,
}
_BEFORE_AXES = "tczyx"  # the order of axes in OME-Zarr 0.2, which does not name them


@dataclass(frozen=True)
class ZarrArray:
    """An array of Zarr; chunks that are not stored have its fill value, as the format says."""

    facts: ArrayFacts
    array: "zarr.Array[Any]"
    url: str

    def read(self, part: Part, overlap: Overlap) -> Array:  # noqa: ARG002 - zarr has its own
        """Read a part, a bounded number of chunks at once; raises UnreadableSource."""
        import zarr

        try:
            with zarr.config.set({"async.concurrency": self.facts.overlap_width}):
                array = cast("Array", self.array[part])
        except IgneousError:
            raise
        except Exception as error:
            raise UnreadableSource(f"{self.url} cannot be read: {error}") from error
        return array

    def look(self) -> Findings:
        """Nothing that opening has not found: no chunk is read to find out."""
        return Findings()


def open_zarr(folder: Folder, name: str | None) -> ZarrArray:
    """Open an array, or in a group the named one or the finest of an OME image.

    Raises UnreadableSource, SourceNotFound, and InvalidParameter saying which arrays there are.
    """
    require("zarr", "Zarr")
    from zarr.errors import NodeNotFoundError

    path = "" if name is None else name.strip("/")
    try:
        return _opened(folder, path)
    except IgneousError:
        raise
    except (FileNotFoundError, NodeNotFoundError, KeyError) as error:
        raise SourceNotFound(
            f"dataset: {folder.url} has no array {path or '/'}: {error}"
        ) from error
    except Exception as error:
        raise UnreadableSource(f"{folder.url} is no Zarr that can be read: {error}") from error


def _opened(folder: Folder, path: str) -> ZarrArray:
    import zarr

    from igneous_airflow.sources.zarr_codecs import bounded
    from igneous_airflow.sources.zarr_store import FolderStore

    store = FolderStore(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about what others have put into the folder
        root = zarr.open(store, mode="r")
        node: Any = root[path] if path and isinstance(root, zarr.Group) else root
        if isinstance(node, zarr.Group):
            image = _image(folder, node)
            if image is None:
                raise _no_image(folder, path, node)
            name = image.finest
            node = node[name]
        else:
            image, name = _image_around(folder, root, node.path)
    url = f"{folder.url}/{node.path}".rstrip("/")
    facts = _facts(folder, node, image, image.resolution(name) if image else None)
    store.allow(prod(node.shards or node.chunks) * facts.dtype.itemsize)
    return ZarrArray(facts, bounded(node, url), url)


def _image(folder: Folder, node: "zarr.Group | zarr.Array[Any]") -> "OmeImage | None":
    """The image that a group is, if any; raises UnreadableSource."""
    try:
        return OmeImage.of(node.attrs.asdict())
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        place = f"{folder.url}/{node.path}".rstrip("/")
        raise UnreadableSource(
            f"{place}: the metadata of an OME image are broken: {error!r}"
        ) from error


def _image_around(folder: Folder, root: Any, path: str) -> "tuple[OmeImage | None, str]":
    """The image that lists an array, of the nearest group above it, and its name there."""
    for above in PurePosixPath(path).parents:
        group = root.get(str(above)) if above.name else root
        image = None if group is None else _image(folder, group)
        name = str(PurePosixPath(path).relative_to(above))
        if image is not None and name in image.scales:
            return image, name
    return None, ""


def _no_image(folder: Folder, path: str, group: "zarr.Group") -> InvalidParameter:
    """The error that names what is in a group which says of no array that it is the image."""
    found = []
    if group.store.supports_listing:
        found = [
            f"{name} ({'x'.join(map(str, array.shape))} {array.dtype})"
            for name, array in sorted(group.arrays())
        ]
        inner = sorted(group.groups())
        found += [f"{name} (an image)" for name, node in inner if _image(folder, node)]
    there = f"holds {', '.join(found)}" if found else "is a group"
    place = f"{folder.url}/{path}".rstrip("/")
    return InvalidParameter(f"dataset: {place} {there}: set dataset to what is to be ingested")


def _facts(
    folder: Folder,
    array: "zarr.Array[Any]",
    image: "OmeImage | None",
    resolution: Resolution | None,
) -> ArrayFacts:
    axes = (image.axes if image and len(image.axes) == array.ndim else None) or _named_axes(array)
    block = tuple(map(int, _decoded_at_once(array)))
    return ArrayFacts(
        shape=tuple(map(int, array.shape)),
        dtype=array.dtype,
        block=block,
        axes=axes,
        resolution=resolution,
        whole_bytes=prod(block) * array.dtype.itemsize,
        overlap_width=overlap_width(folder.url),
    )


def _decoded_at_once(array: "zarr.Array[Any]") -> tuple[int, ...]:
    """A chunk; or a shard, where codecs beside its own go over all of it."""
    codecs = getattr(array.metadata, "codecs", ())
    is_whole = array.shards is not None and len(codecs) > 1
    return array.shards if is_whole and array.shards is not None else array.chunks


def _named_axes(array: "zarr.Array[Any]") -> str | None:
    """The axes that an array's own metadata name: of Zarr 3, or as xarray writes them."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        return None
    letters = "".join(names).lower()
    return letters if len(names) == len(letters) == len(set(letters)) else None


@dataclass(frozen=True)
class OmeImage:
    """What the metadata of an OME image say of its arrays."""

    axes: str
    units: tuple[str | None, ...]
    scales: Mapping[str, list[float]]  # by the path of the array
    finest: str

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> "OmeImage | None":
        """The first image of a group; None where there is none.

        Raises LookupError, ValueError, TypeError or AttributeError for broken metadata.
        """
        ome = attributes.get("ome", attributes)
        images = ome.get("multiscales") if isinstance(ome, Mapping) else None
        if not images:
            return None
        image = images[0]
        axes = [_axis(axis) for axis in image.get("axes", _BEFORE_AXES)]
        common = _scale(image)
        scales = {}
        for dataset in image["datasets"]:
            own = _scale(dataset)
            one = own or common
            if own and common:
                one = [a * b for a, b in zip(own, common, strict=True)]
            scales[str(dataset["path"])] = one or []
        letters = "".join(letter for letter, _ in axes)
        units = tuple(unit for _, unit in axes)
        return cls(letters, units, scales, str(image["datasets"][0]["path"]))

    def resolution(self, name: str) -> Resolution | None:
        """Nanometres on x,y,z of an array, where all these axes have a unit and a real scale."""
        scale = self.scales[name]
        if len(scale) != len(self.axes):
            return None
        sizes = []
        for letter in "xyz":
            place = self.axes.find(letter)
            if place < 0 and letter == "z":
                sizes.append(1.0)
                continue
            size = scale[place] * _NANOMETRES.get(self.units[place] or "", nan)
            if not 0 < size < inf:
                return None
            sizes.append(float(f"{size:.12g}"))
        return sizes[0], sizes[1], sizes[2]


def _axis(axis: Any) -> tuple[str, str | None]:
    """The letter of an axis and its unit; axes of other names keep one that is refused later."""
    if isinstance(axis, str):
        return axis.lower(), None
    name, kind = str(axis["name"]).lower(), axis.get("type")
    letter = {"channel": "c", "time": "t"}.get(str(kind), name)
    return letter if len(letter) == 1 else "?", axis.get("unit")


def _scale(entry: Mapping[str, Any]) -> list[float] | None:
    for transformation in entry.get("coordinateTransformations", ()):
        if transformation.get("type") == "scale" and "scale" in transformation:
            return [float(value) for value in transformation["scale"]]
    return None
