"""Watershed remap: a segmentation whose labels are replaced by those that a map names."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property, partial
from tempfile import gettempdir
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.fields import FileUrl
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.stage import Plan
from igneous_airflow.voxel_stages import Conversion, ReadsFiles, layer_source

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igneous_airflow.pyramid.destination import Request
    from igneous_airflow.pyramid.route import Route
    from igneous_airflow.pyramid.source import Change
    from igneous_airflow.storage.label_map import LabelMap
    from igneous_airflow.storage.layer import Layer


class WatershedRemap(ReadsFiles, Conversion):
    """Replace every label of a segmentation by the one that a map names for it.

    So an agglomeration becomes voxels: label k becomes map[k]. Coarser mips are made on the way by
    mode pooling. The source is never written to.
    """

    name: ClassVar[str] = "watershed_remap"

    map_path: Annotated[
        FileUrl,
        Field(
            title="Map",
            description="Address of the map: a .npy file whose element k is what label k becomes, "
            "or an HDF5 file whose dataset 'main' starts with what label 1 becomes. Its values, "
            "uint32 or uint64, are the destination's.",
        ),
    ]

    def plan(self) -> Plan:
        """The plan of a conversion, with the room that a copy of the map takes."""
        plan = super().plan()
        if plan.refusals:
            return plan
        return plan.model_copy(update={"scratch": self._map.copied_bytes})

    def _content(self) -> str:
        return self._map.version

    @cached_property
    def _map(self) -> "LabelMap":
        from igneous_airflow.storage.label_map import LabelMap

        found = LabelMap.open(self.map_path)
        self._require_unchanged(found.version)
        return found

    def _request(self, layer: "Layer") -> "Request":
        from igneous_airflow.pyramid.destination import VoxelKind

        kind = VoxelKind(self._map.dtype.name, layer.info.channels, "segmentation")
        # meshes and skeletons are named by the old labels
        return replace(super()._request(layer), kind=kind, clean_info=True)

    def _change(self, layer: "Layer") -> "Change":
        return partial(self._look_up, layer)

    def _look_up(self, layer: "Layer", box: BoundingBox, labels: "NDArray[Any]") -> "NDArray[Any]":
        """The new labels of a box; raises InvalidParameter naming a label that the map lacks."""
        from igneous_airflow.kernels.lookup import first_beyond, look_up

        values = self._map.values
        beyond = first_beyond(labels, len(values))
        if beyond is not None:
            place = box.min + Vec3.of(beyond[:3])
            raise InvalidParameter(
                f"voxel {place} of {layer.folder.url}, mip {self.mip}, has label {labels[beyond]}, "
                f"but {self.map_path} has images of 0 to {len(values) - 1} only: use a map that "
                "was made for this layer"
            )
        return look_up(labels, values)

    def _problems(self, route: "Route") -> Iterator[str]:
        from igneous_airflow.pyramid.layout import label_problems

        yield from label_problems(layer_source(route).layer.info)
        yield from super()._problems(route)

    def _notes(self, route: "Route") -> Iterator[str]:
        found = self._map
        yield f"the map has images of the labels 0 to {found.length - 1:,}, {found.version}"
        if found.copied_bytes:
            yield (
                f"each machine or pod first copies the map, {found.copied_bytes:,} bytes, into its "
                f"temporary folder, which is {gettempdir()} here"
            )
        if found.background:
            yield f"the map turns background, 0, into label {found.background}"
        yield from super()._notes(route)
