"""What the `info` of a mesh directory says: the grid of the fragments, and the spatial index.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/meshes.md;
`mip`, `chunk_size` and `spatial_index` are cloud-volume's, `parts`, `unfinished` and
`parts_of_others` are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.strict_json import parse_json, shown

SPATIAL_INDEX = ".spatial"  # how the names of its files end
_TYPE = "neuroglancer_legacy_mesh"
_UNFINISHED, _OTHERS = "unfinished", "parts_of_others"
_OWN = frozenset({"@type", "mip", "chunk_size", "parts", "spatial_index", _UNFINISHED, _OTHERS})


@dataclass(frozen=True, slots=True)
class Begun:
    """A part that is being meshed, or whose run was given up; `parameters` is a fingerprint.

    `everything` tells that all labels are meshed again, so that nothing of earlier runs is left.
    `entries` is how many the layer's provenance had at the beginning: those that follow are of
    other runs.
    """

    parameters: str
    part: BoundingBox
    everything: bool
    entries: int = field(default=0, compare=False)

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Self:
        """Read an entry of `unfinished`; raises KeyError, TypeError or ValueError."""
        part = BoundingBox.parse(str(data["part"]))
        entries = int(data.get("entries", 0))
        return cls(str(data["parameters"]), part, bool(data["everything"]), entries)

    def data(self) -> dict[str, Any]:
        """The entry of `unfinished`."""
        return {
            "parameters": self.parameters,
            "part": str(self.part),
            "everything": self.everything,
            "entries": self.entries,
        }

    def supersedes(self, other: Self) -> bool:
        """Whether another run need not be finished any more when this one is."""
        is_same = (self.parameters, self.part) == (other.parameters, other.part)
        return is_same or (self.everything and self.part.contains(other.part))


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """The `info` of a mesh directory: the grid of its fragments, and the parts that are meshed.

    `others` are the keys of other programs. `unfinished` are the runs that have begun. With
    `has_others`, fragments outside of the parts belong to the meshes too: other programs made them.
    """

    mip: int
    cell: Vec3
    parts: tuple[BoundingBox, ...] = ()  # in voxels of the mip
    others: Mapping[str, Any] = field(default_factory=dict)
    unfinished: tuple[Begun, ...] = ()
    has_others: bool = False

    def __str__(self) -> str:
        return f"mip {self.mip} in cells of {self.cell}"

    @classmethod
    def of(cls, data: Mapping[str, Any], place: str) -> "MeshInfo | None":
        """Read the file's content; None when it tells of no grid. Raises InvalidInfo."""
        try:
            if data.get("@type", _TYPE) != _TYPE:
                raise InvalidInfo(
                    f"{place} holds meshes of another format, {data['@type']}: remove 'mesh' from "
                    "the layer's info to make new ones beside them"
                )
            if "mip" not in data or "chunk_size" not in data:
                return None
            cell, parts = Vec3.of(data["chunk_size"]), data.get("parts", ())
            if min(cell) < 1:
                raise ValueError(f"chunk_size {cell}")
            return cls(
                int(data["mip"]),
                cell,
                tuple(map(BoundingBox.parse, parts)),
                data,
                tuple(map(Begun.of, data.get(_UNFINISHED, ()))),
                has_others=bool(data.get(_OTHERS)),
            )
        except (ValueError, TypeError, KeyError) as error:
            if isinstance(error, InvalidInfo):
                raise
            raise InvalidInfo(f"{place}/info is no info of meshes: {error}") from error

    def added_to(
        self,
        data: Mapping[str, Any],
        place: str,
        spatial_index: Mapping[str, Any] | None,
        begun: Begun | None = None,
    ) -> dict[str, Any]:
        """The content of a file with these parts added, or, where it has another grid, replaced.

        All keys of others stay, and the meshes of other programs belong to it still. `begun` is the
        run that is to mesh them. Raises InvalidInfo.
        """
        present = MeshInfo.of(data, place)
        if present is None or not present.has_grid_of(self):
            present = MeshInfo(self.mip, self.cell)
        elif "parts" not in data:
            present = replace(present, has_others=True)
        if begun is not None:
            left = (other for other in present.unfinished if not begun.supersedes(other))
            present = replace(present, unfinished=(*left, begun))
        for part in self.parts:
            present = present.with_part(part)
        no_longer = {"spatial_index"} if present.parts == self.parts else set()  # of older meshes
        others = {key: value for key, value in data.items() if key not in no_longer}
        return replace(present, others=others).data(spatial_index)

    def data(self, spatial_index: Mapping[str, Any] | None) -> dict[str, Any]:
        """The file's content."""
        index = {} if spatial_index is None else {"spatial_index": spatial_index}
        mine: dict[str, Any] = {
            "@type": _TYPE,
            "mip": self.mip,
            "chunk_size": list(self.cell),
            "parts": [str(box) for box in self.parts],
        }
        if self.unfinished:
            mine[_UNFINISHED] = [begun.data() for begun in self.unfinished]
        if self.has_others:
            mine[_OTHERS] = True
        gone = {_UNFINISHED, _OTHERS}
        others = {key: value for key, value in self.others.items() if key not in gone}
        return {**others, **mine, **index}

    def without(self, begun: Begun) -> "MeshInfo":
        """The same when a run has finished."""
        left = tuple(other for other in self.unfinished if not begun.supersedes(other))
        return replace(self, unfinished=left)

    def has_grid_of(self, other: "MeshInfo") -> bool:
        """Whether fragments of both lie on the same grid."""
        return (self.mip, self.cell) == (other.mip, other.cell)

    def with_part(self, box: BoundingBox) -> "MeshInfo":
        """Add a part; parts inside of others are left out."""
        if any(part.contains(box) for part in self.parts):
            return self
        kept = [part for part in self.parts if not box.contains(part)]
        return replace(self, parts=(*kept, box))


def keys_of_others(data: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says besides, which is as true of other meshes in the directory."""
    return {key: value for key, value in data.items() if key not in _OWN}


def read_object(text: bytes, place: str) -> dict[str, Any]:
    """Read the file's JSON; raises InvalidInfo."""
    try:
        data = parse_json(text)
    except ValueError as error:
        raise InvalidInfo(f"{place}/info is no info of meshes: {error}") from error
    if not isinstance(data, dict):
        raise InvalidInfo(f"{place}/info is no info of meshes: it holds {shown(data)}")
    return data


def spatial_index_name(cell: BoundingBox, scale: Scale) -> str:
    """The file with the spatial index of a cell: its box in nm, with the resolution's decimals.

    That is how cloud-volume writes these names.
    """
    decimals = max(_decimals(r) for r in scale.resolution)
    spans = zip(cell.min, cell.max, scale.resolution, strict=True)
    box = "_".join(f"{low * r:.{decimals}f}-{high * r:.{decimals}f}" for low, high, r in spans)
    return f"{box}{SPATIAL_INDEX}"


def _decimals(number: float) -> int:
    return 0 if number.is_integer() else len(f"{number!r}".partition(".")[2])


def spatial_index_entry(scale: Scale, cell: Vec3) -> dict[str, Any]:
    """What the mesh directory's info says about the spatial index."""
    resolution = [int(r) if r.is_integer() else r for r in scale.resolution]
    spans = [edge * r for edge, r in zip(cell, resolution, strict=True)]
    return {"resolution": resolution, "chunk_size": spans}
