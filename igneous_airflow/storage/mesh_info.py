"""What the `info` of a mesh directory says: the grid of the fragments, and the spatial index.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/meshes.md;
`mip`, `chunk_size` and `spatial_index` are cloud-volume's, `parts` is ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from igneous_airflow.errors import InvalidInfo
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.storage.info import Scale
from igneous_airflow.storage.strict_json import parse_json, shown

SPATIAL_INDEX = ".spatial"  # how the names of its files end
_TYPE = "neuroglancer_legacy_mesh"


@dataclass(frozen=True, slots=True)
class MeshInfo:
    """The `info` of a mesh directory: the grid of its fragments, and the parts that are meshed.

    `others` are the keys of somebody else's.
    """

    mip: int
    cell: Vec3
    parts: tuple[BoundingBox, ...] = ()  # in voxels of the mip
    others: Mapping[str, Any] = field(default_factory=dict)

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
            return cls(int(data["mip"]), cell, tuple(map(BoundingBox.parse, parts)), data)
        except (ValueError, TypeError) as error:
            if isinstance(error, InvalidInfo):
                raise
            raise InvalidInfo(f"{place}/info is no info of meshes: {error}") from error

    def added_to(
        self, data: Mapping[str, Any], place: str, spatial_index: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The content of a file with these parts added, or, where it has another grid, replaced.

        All keys of others stay. Raises InvalidInfo.
        """
        present = MeshInfo.of(data, place)
        if present is None or not present.has_grid_of(self):
            present = MeshInfo(self.mip, self.cell)
        for part in self.parts:
            present = present.with_part(part)
        no_longer = {"spatial_index"} if present.parts == self.parts else set()  # of older meshes
        others = {key: value for key, value in data.items() if key not in no_longer}
        return replace(present, others=others).data(spatial_index)

    def data(self, spatial_index: Mapping[str, Any] | None) -> dict[str, Any]:
        """The file's content."""
        index = {} if spatial_index is None else {"spatial_index": spatial_index}
        mine = {
            "@type": _TYPE,
            "mip": self.mip,
            "chunk_size": list(self.cell),
            "parts": [str(box) for box in self.parts],
        }
        return {**self.others, **mine, **index}

    def has_grid_of(self, other: "MeshInfo") -> bool:
        """Whether fragments of both lie on the same grid."""
        return (self.mip, self.cell) == (other.mip, other.cell)

    def with_part(self, box: BoundingBox) -> "MeshInfo":
        """Add a part; parts inside of others are left out."""
        if any(part.contains(box) for part in self.parts):
            return self
        kept = [part for part in self.parts if not box.contains(part)]
        return MeshInfo(self.mip, self.cell, (*kept, box), self.others)


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
