"""Ingest: voxels that are in files of other formats into a layer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field

from igneous_airflow.errors import IgneousError, SourceChanged
from igneous_airflow.fields import (
    LIMITS,
    WHAT,
    WHERE,
    ChunkSize,
    Encoding,
    FillMissing,
    IntegerVec3,
    Resolution,
    SourceUrl,
    section,
)
from igneous_airflow.stage import Plan
from igneous_airflow.voxel_stages import WritesLayer

if TYPE_CHECKING:
    from igneous_airflow.pyramid.route import Route
    from igneous_airflow.sources.opening import FileSource, Found, Reading

_LIKE_LABELS = ("uint32", "uint64")


def _small_letters(axes: str | None) -> str | None:
    return axes and axes.lower()


class Ingest(WritesLayer):
    """Make a layer of image stacks, arrays, volumes or build chunks, with its first coarser mips.

    Reads a folder or a pattern of TIFF, PNG or JPEG sections, one multi-page TIFF, .npy, HDF5,
    NIfTI, Zarr, OME-Zarr, or a folder of build chunks named by their boxes. Tasks are blocks of the
    layer, and each reads only the sections or blocks that it needs.
    """

    name: ClassVar[str] = "ingest"

    source: SourceUrl
    resolution: Resolution = None
    layer_type: Annotated[
        Literal["image", "segmentation", "affinities"],
        Field(
            title="Layer type",
            description="What the voxels are: grey values, or the labels of a segmentation. It "
            "decides how coarser mips are made.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = "image"
    axes: Annotated[
        str | None,
        Field(
            pattern="^[tczyxTCZYX]{2,5}$",
            title="Axes",
            description="Which axis of the array is which, a letter for each, in the order of its "
            "shape: zyx is how numpy, HDF5 and zarr mostly have it, xyz is the other way round; c "
            "is channels. Empty: as the file says, which .npy and plain HDF5 do not. Sections are "
            "zyx: rows are y, columns x, and z is their order.",
            json_schema_extra=section(WHERE, first=True),
        ),
        AfterValidator(_small_letters),
    ] = None
    dataset: Annotated[
        str | None,
        Field(
            title="Dataset",
            description="Path of the array in an HDF5 file or a Zarr group. Empty: the only one, "
            "or the finest of an OME-Zarr image.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    voxel_offset: Annotated[
        IntegerVec3 | None,
        Field(
            title="Voxel offset",
            description="Where the first voxel comes to lie, x,y,z in voxels, as 100,200,0. Empty: "
            "where the names of build chunks say, where an existing destination begins, or 0,0,0.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    chunk_size: Annotated[
        ChunkSize,
        Field(
            description="Chunk size of the layer in voxels, x,y,z. Empty: that of an existing "
            "destination, or 64,64,64; of build chunks, on each axis the divisor of their size "
            "nearest to 64.",
        ),
    ] = None
    encoding: Annotated[
        Encoding,
        Field(
            description="Encoding of the layer. Empty: that of an existing destination, or raw.",
        ),
    ] = None
    fill_missing: Annotated[
        FillMissing,
        Field(
            description="Make background of sections that are missing in the numbering, and of "
            "holes between build chunks. Otherwise sections close up, and holes are refused.",
        ),
    ] = False
    source_state: Annotated[
        str | None,
        Field(
            title="Source state",
            description="Number, bytes and fingerprint of the source's files when the run was "
            "planned; tasks refuse to read others. Empty: as they are now.",
            json_schema_extra=section(LIMITS),
        ),
    ] = None

    def resolved(self) -> Self:
        """Remember the state of the source's files, so that all tasks read the same."""
        if self.source_state is not None:
            return self
        from igneous_airflow.sources.opening import find_source

        return self.model_copy(update={"source_state": find_source(self.source).state})

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse.

        Reads the header of every file, which tasks take for granted.
        """
        from igneous_airflow.sources.opening import look_into

        try:
            findings = look_into(self._found(), self._reading())
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if findings.problems:
            return Plan(stage=self.name, refusals=findings.problems)
        plan = super().plan()
        return plan.model_copy(update={"notes": (*plan.notes, *findings.notes)})

    def _found(self) -> "Found":
        """What is at the source's address; raises SourceChanged when it was something else."""
        from igneous_airflow.sources.opening import find_source

        found = find_source(self.source)
        if self.source_state not in (None, found.state):
            raise SourceChanged(
                f"source: the files of {self.source} have changed since the run was planned: they "
                f"were {self.source_state}, and are {found.state}. Start a new run"
            )
        return found

    def _reading(self) -> "Reading":
        from igneous_airflow.sources.opening import Reading

        return Reading(
            self.dataset,
            self.axes,
            self.fill_missing,
            self.background_color,
            self.memory_target,
        )

    def _route(self) -> "Route":
        from igneous_airflow.pyramid.destination import VoxelKind
        from igneous_airflow.pyramid.placement import NewVoxels, place_voxels, source_place_problems
        from igneous_airflow.pyramid.route import find_route
        from igneous_airflow.sources.opening import open_source

        found = self._found()
        source = open_source(found, self._reading())
        voxels = NewVoxels(
            kind=VoxelKind(source.data_type, source.channels, self.layer_type),
            size=source.bounds.size,
            resolution=self.resolution or source.resolution,
            voxel_offset=self.voxel_offset or (source.bounds.min if source.has_place else None),
            wishes=self._wishes(),
            default_chunk_size=source.default_chunk_size,
            info_keys=source.info_keys(self.layer_type),
        )
        place, conflicts = place_voxels(self.dest, voxels)
        placed = source.placed(place.region.min)
        route = find_route(placed, place, voxels.wishes, self._limits())
        keys = [scale.key for scale, _ in route.written]
        mixed_up = source_place_problems(found.url, place.folder.url, keys)
        return replace(route, conflicts=(*conflicts, *mixed_up, *route.conflicts))

    def _problems(self, route: "Route") -> Iterator[str]:
        from igneous_airflow.pyramid.layout import background_problems
        from igneous_airflow.pyramid.placement import placement_problems

        source, place = _file_source(route), route.place
        yield from _label_problems(source) if self.layer_type == "segmentation" else ()
        yield from background_problems(place.layer.dtype, self.background_color)
        yield from placement_problems(place, route.geometry.unit)
        yield from super()._problems(route)

    def _notes(self, route: "Route") -> Iterator[str]:
        source, place = _file_source(route), route.place
        yield from source.notes
        if self.layer_type == "image" and source.data_type in _LIKE_LABELS:
            yield (
                f"voxels are {source.data_type}, as labels are: set layer_type to segmentation "
                "if that is what they are"
            )
        if self.resolution is None:
            yield "voxels are of {:g} x {:g} x {:g} nm".format(*place.scale.resolution)
        yield from super()._notes(route)

    def _sources(self) -> Sequence[str]:
        return (self.source,)


def _label_problems(source: "FileSource") -> Iterator[str]:
    if source.channels > 1:
        yield (
            f"layer_type: labels have one channel, and the source has {source.channels}: take the "
            "layer type image, or a file of labels that is no colour picture"
        )
    if source.data_type.startswith("float"):
        yield f"layer_type: labels are integers, and the source holds {source.data_type}"


def _file_source(route: "Route") -> "FileSource":
    from igneous_airflow.sources.array_source import ArraySource
    from igneous_airflow.sources.build import BuildSource

    assert isinstance(route.source, ArraySource | BuildSource)  # noqa: S101 - what `_route` gives
    return route.source
