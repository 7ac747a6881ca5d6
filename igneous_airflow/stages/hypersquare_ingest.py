"""Hypersquare ingest: a volume in overlapping cubes, as Eyewire keeps it, into a layer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.fields import (
    WHAT,
    WHERE,
    ChunkSize,
    Encoding,
    FillMissing,
    IntegerVec3,
    LayerUrl,
    section,
)
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.geometry.mips import divisor_nearest_64
from igneous_airflow.voxel_stages import WritesLayer

if TYPE_CHECKING:
    from igneous_airflow.pyramid.cubes import CubeGrid, CubeSource
    from igneous_airflow.pyramid.destination import Destination
    from igneous_airflow.pyramid.layout import ScaleWishes
    from igneous_airflow.pyramid.placement import NewVoxels
    from igneous_airflow.pyramid.route import Route


class HypersquareIngest(WritesLayer):
    """Make a layer of a volume that is kept in overlapping cubes, each in a folder of its own.

    Each cube loses half of the overlap on all sides, so that they fit together. One run makes the
    segmentation, another the image; coarser mips are made on the way.
    """

    name: ClassVar[str] = "hypersquare_ingest"

    src: Annotated[
        LayerUrl,
        Field(
            title="Source",
            description="Address of the folder that has a folder for each cube, with "
            "metadata.json, segmentation.lzma and jpg/0.jpg ...: gs://BUCKET/PATH, "
            "s3://BUCKET/PATH, or an absolute path on this machine as /data/cubes.",
            json_schema_extra=section(WHERE, first=True),
        ),
    ]
    content: Annotated[
        Literal["segmentation", "image"],
        Field(
            title="Content",
            description="What of the cubes the layer gets: the labels, or the grey sections.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = "segmentation"
    overlap: Annotated[
        int,
        Field(
            ge=0,
            multiple_of=2,
            title="Overlap",
            description="How many voxels neighbouring cubes share on each axis; each cube loses "
            "half of them on all sides.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 32
    voxel_offset: Annotated[
        IntegerVec3 | None,
        Field(
            title="Voxel offset",
            description="Where the first voxel comes to lie, x,y,z in voxels, as 100,200,0. Empty: "
            "where the metadata say, which is half of the overlap after the first cube's offset.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    chunk_size: Annotated[
        ChunkSize,
        Field(
            description="Chunk size of the layer in voxels, x,y,z as 64,64,64. Empty: that of an "
            "existing destination, or on each axis the divisor nearest to 64 of what is left of "
            "a cube.",
        ),
    ] = None
    encoding: Annotated[
        Encoding,
        Field(
            description="Encoding of the layer. Empty: that of an existing destination, or jpeg "
            "for the image, as the cubes have it, and raw for the segmentation.",
        ),
    ] = None
    fill_missing: Annotated[
        FillMissing,
        Field(description="Make background of missing cubes, sections and labels."),
    ] = False

    @cached_property
    def _cubes(self) -> "CubeGrid":
        """The cubes, looked for once."""
        from igneous_airflow.pyramid.cubes import CubeGrid
        from igneous_airflow.storage.files import open_source_folder
        from igneous_airflow.storage.hypersquare import read_cubes

        cubes, others = read_cubes(open_source_folder(self.src))
        return CubeGrid(cubes, self.overlap, others)

    def _route(self) -> "Route":
        from igneous_airflow.pyramid.placement import place_voxels, source_place_problems
        from igneous_airflow.pyramid.route import find_route

        voxels = self._voxels()
        place, conflicts = place_voxels(self.dest, voxels)
        route = find_route(self._source(place), place, voxels.wishes, self._limits())
        keys = [scale.key for scale, _ in route.written]
        mixed_up = source_place_problems(self.src, self.dest, keys)
        return replace(route, conflicts=(*conflicts, *mixed_up, *route.conflicts))

    def _voxels(self) -> "NewVoxels":
        """What the cubes give a layer; raises InvalidParameter when they have no labels."""
        from igneous_airflow.pyramid.destination import VoxelKind
        from igneous_airflow.pyramid.placement import NewVoxels

        cubes = self._cubes
        box, cell = cubes.grid.box, cubes.grid.cell
        return NewVoxels(
            kind=VoxelKind(self._data_type(), 1, self.content),
            size=box.size,
            resolution=cubes.cubes[0].resolution,
            voxel_offset=self.voxel_offset or box.min,
            wishes=self._wishes(),
            default_chunk_size=Vec3(*(divisor_nearest_64(max(length, 1)) for length in cell)),
        )

    def _data_type(self) -> str:
        if self.content == "image":
            return "uint8"
        types = {cube.label_type: cube.name for cube in self._cubes.cubes}
        if None in types:
            raise InvalidParameter(
                f"the metadata of cube {types[None]} do not say what its labels are: "
                "segment_id_type is missing"
            )
        return max(filter(None, types), key=lambda name: int(name.removeprefix("uint")))

    def _wishes(self) -> "ScaleWishes":
        from igneous_airflow.pyramid.destination import open_destination

        wishes = super()._wishes()
        if self.content == "image" and open_destination(self.dest)[1] is None:
            return replace(wishes, encoding=self.encoding or "jpeg")
        return wishes

    def _source(self, place: "Destination") -> "CubeSource":
        from igneous_airflow.pyramid.cubes import CubeSource
        from igneous_airflow.storage.files import open_source_folder

        return CubeSource(
            folder=open_source_folder(self.src),
            cubes=self._cubes,
            dtype=place.layer.dtype,
            sections=self.content == "image",
            shift=place.region.min - self._cubes.grid.box.min,
            missing=self.background_color if self.fill_missing else None,
        )

    def _problems(self, route: "Route") -> Iterator[str]:
        from igneous_airflow.pyramid.layout import background_problems
        from igneous_airflow.pyramid.placement import placement_problems

        yield from self._cubes.problems
        if self._cubes.problems:
            return
        largest = max(cube.decoded_bytes for cube in self._cubes.cubes)
        if largest > self.memory_target:
            yield (
                f"memory_target: a cube has {largest:,} bytes, which are decoded as a whole, and a "
                f"task may use {self.memory_target:,}: raise memory_target"
            )
        if not self.fill_missing:
            for gap in self._cubes.gaps:
                yield f"{gap}: restore them, or set fill_missing to take background"
        yield from background_problems(route.place.layer.dtype, self.background_color)
        yield from placement_problems(route.place, route.geometry.unit)
        yield from super()._problems(route)

    def _notes(self, route: "Route") -> Iterator[str]:
        cubes = self._cubes
        resolution = "{:g} x {:g} x {:g} nm".format(*cubes.cubes[0].resolution)
        yield (
            f"{len(cubes.cubes):,} cubes of {cubes.grid.cell} voxels without the overlap, "
            f"{resolution}; their offsets are in {cubes.cubes[0].unit}"
        )
        for gap in cubes.gaps:
            yield f"{gap}: background is taken"
        yield from super()._notes(route)

    def _sources(self) -> Sequence[str]:
        return (self.src,)
