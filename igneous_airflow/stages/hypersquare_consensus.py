"""Hypersquare consensus: segments of many volumes, joined to the cells that people agreed on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.fields import WHAT, FileUrl, FillMissing, section
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.voxel_stages import Conversion, ReadsFiles, layer_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igneous_airflow.pyramid.destination import Request
    from igneous_airflow.pyramid.route import Route
    from igneous_airflow.pyramid.source import Change
    from igneous_airflow.storage.consensus import Consensus
    from igneous_airflow.storage.layer import Layer

_LARGEST_UINT32 = (1 << 32) - 1
_TABLES_KEPT = 16
_NAMED_AT_MOST = 5


class HypersquareConsensus(ReadsFiles, Conversion):
    """Join the segments of many volumes to cells, by what people agreed on.

    Segments are numbered in each volume anew. One that belongs to a cell becomes that cell, any
    other one gets the label volume * 65536 + segment, and 0 stays 0.
    """

    name: ClassVar[str] = "hypersquare_consensus"

    volume_map_path: Annotated[
        FileUrl,
        Field(
            title="Volume map",
            description="Address of a JSON file that numbers the volumes, by their boxes in voxels "
            'of the mip: {"0-224_0-224_0-224": 1}.',
        ),
    ]
    consensus_map_path: Annotated[
        FileUrl,
        Field(
            title="Consensus map",
            description="Address of a JSON file with the segments of each cell, by the numbers of "
            'the volumes: {"1": {"45": [7, 12]}}.',
        ),
    ]
    data_type: Annotated[
        Literal["uint32", "uint64"] | None,
        Field(
            title="Data type",
            description="Data type of the destination. Empty: that of an existing one, or the "
            "smallest that holds all labels.",
            json_schema_extra=section(WHAT),
        ),
    ] = None
    fill_missing: Annotated[
        FillMissing,
        Field(description="Read missing chunks as background, where volumes were never segmented."),
    ] = True

    def _content(self) -> str:
        return self._consensus.content

    @cached_property
    def _consensus(self) -> "Consensus":
        from igneous_airflow.storage.consensus import Consensus

        found = Consensus.open(self.volume_map_path, self.consensus_map_path)
        self._require_unchanged(found.content)
        return found

    def _request(self, layer: "Layer") -> "Request":
        from igneous_airflow.pyramid.destination import VoxelKind

        kind = VoxelKind(self._dtype, layer.info.channels, "segmentation")
        return replace(super()._request(layer), kind=kind, clean_info=True)

    @cached_property
    def _dtype(self) -> str:
        from igneous_airflow.pyramid.destination import open_destination

        if self.data_type is not None:
            return self.data_type
        present = open_destination(self.dest)[1]
        if present is not None:
            return present.data_type
        return "uint32" if self._consensus.largest_label <= _LARGEST_UINT32 else "uint64"

    def _change(self, layer: "Layer") -> "Change":
        return _Joiner(self._consensus, self._dtype, f"{layer.folder.url}, mip {self.mip}")

    def _problems(self, route: "Route") -> Iterator[str]:
        from igneous_airflow.pyramid.layout import label_problems

        yield from label_problems(layer_source(route).layer.info)
        largest, dtype = self._consensus.largest_label, self._dtype
        if dtype not in ("uint32", "uint64") or (dtype == "uint32" and largest > _LARGEST_UINT32):
            way_out = "set data_type to" if self.data_type else "choose a destination of"
            yield f"data_type: {dtype} cannot hold all labels, up to {largest}: {way_out} uint64"
        yield from super()._problems(route)

    def _notes(self, route: "Route") -> Iterator[str]:
        consensus, source = self._consensus, layer_source(route)
        region = source.at_source(route.place.region)
        cells = {cell for cells in consensus.cells.values() for cell in cells.values()}
        yield f"{len(cells):,} cells in {len(consensus.volumes):,} volumes, {consensus.content}"
        inside = sum(region.intersection(box).voxels for box in consensus.volumes)
        if inside < region.voxels:
            yield f"{region.voxels - inside:,} voxels are in no volume and become 0"
        if unused := consensus.cells.keys() - set(consensus.volumes.values()):
            yield f"{len(unused):,} volumes of the consensus are not in the volume map"
        for cell, volume, segment in list(consensus.ambiguous())[:_NAMED_AT_MOST]:
            yield (
                f"cell {cell} cannot be told from segment {segment} of volume {volume}, which gets "
                "the same label"
            )
        yield from super()._notes(route)


@dataclass(frozen=True)
class _Joiner:
    """Joins the segments of boxes; `place` is where they are read, for errors."""

    consensus: "Consensus"
    dtype: str
    place: str

    def __call__(self, box: BoundingBox, segments: "NDArray[Any]") -> "NDArray[Any]":
        """The labels of a box; raises InvalidParameter for a segment that no volume can have."""
        import numpy as np

        from igneous_airflow.kernels.lookup import first_beyond, look_up
        from igneous_airflow.storage.consensus import SEGMENTS

        labels = np.zeros(segments.shape, self.dtype, order="F")
        for volume_box, volume in self.consensus.overlapping(box):
            part = volume_box.intersection(box).slices_within(box)
            found = segments[part]
            if (beyond := first_beyond(found, SEGMENTS)) is not None:
                voxel = volume_box.intersection(box).min + Vec3.of(beyond[:3])
                raise InvalidParameter(
                    f"voxel {voxel} of {self.place} has segment {found[beyond]}, but segments of a "
                    f"volume are numbered up to {SEGMENTS - 1}: is this another segmentation?"
                )
            into, table = labels[part], self._tables(volume)
            for z in range(found.shape[2]):  # one by one, to save memory
                into[:, :, z] = look_up(found[:, :, z], table)
        return labels

    @cached_property
    def _tables(self) -> "Callable[[int], NDArray[Any]]":
        return lru_cache(_TABLES_KEPT)(lambda volume: self.consensus.table(volume, self.dtype))
