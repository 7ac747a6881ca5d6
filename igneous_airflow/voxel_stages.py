"""What stages that write voxels have in common; the stages themselves are under `stages/`.

PyramidOptions      how coarser mips are made and chunks are stored
└── WritesLayer     fills a layer with voxels, from a source of the stage's own
    └── Conversion  from another layer, whose voxels it may change
ReadsFiles          reads files besides, whose content is fixed when a run is launched
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field

from igneous_airflow.errors import IgneousError, InvalidParameter
from igneous_airflow.fields import (
    LIMITS,
    WHAT,
    WHERE,
    BackgroundColor,
    Bounds,
    ChunkSize,
    Compress,
    CompressLevel,
    Confirm,
    Encoding,
    EncodingLevel,
    Factor,
    FillMissing,
    Fingerprint,
    IntegerVec3,
    LayerUrl,
    MemoryTarget,
    Mip,
    PoolingMethod,
    PositiveVec3,
    SkipEmpty,
    Sparse,
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.proof import Account, require_files
from igneous_airflow.stage import Audit, Plan, Stage, Work

if TYPE_CHECKING:
    from igneous_airflow.pyramid.destination import Request
    from igneous_airflow.pyramid.layout import ScaleWishes
    from igneous_airflow.pyramid.route import Route, TaskLimits
    from igneous_airflow.pyramid.source import Change, LayerSource
    from igneous_airflow.pyramid.writer import WriteOptions
    from igneous_airflow.storage.info import Info, Scale
    from igneous_airflow.storage.layer import Layer

_PLANE = Vec3(2, 2, 1)


class PyramidOptions(Stage):
    """How coarser mips are made and chunks are stored."""

    factor: Factor = None
    method: PoolingMethod = "auto"
    sparse: Sparse = False
    background_color: BackgroundColor = 0
    skip_empty: SkipEmpty = "write"
    chunk_size: ChunkSize = None
    encoding: Encoding = None
    encoding_level: EncodingLevel = None
    compress: Compress = "auto"
    compress_level: CompressLevel = None
    memory_target: MemoryTarget = 3_500_000_000
    confirm: Confirm = False

    def _write_options(self, layer_type: str) -> "WriteOptions":
        """The options for a layer; the method `auto` goes by the layer's type."""
        from igneous_airflow.pyramid.writer import WriteOptions, method_for

        return WriteOptions(
            method=method_for(layer_type) if self.method == "auto" else self.method,
            sparse=self.sparse,
            compress=self.compress,
            compress_level=self.compress_level,
            skip_empty=self.skip_empty,
            background=self.background_color,
        )


class ReadsLayer(Stage):
    """Reads the voxels of one mip of a layer."""

    src: Annotated[
        LayerUrl,
        Field(
            title="Source",
            description="Address of the Precomputed layer to read: gs://BUCKET/PATH, "
            "s3://BUCKET/PATH, or an absolute path on this machine as /data/layer.",
        ),
    ]
    mip: Mip = 0
    bounds: Bounds = None
    fill_missing: FillMissing = False

    def resolved(self) -> Self:
        """Replace mip -1 by the source's coarsest mip."""
        if self.mip >= 0:
            return self
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.src)
        return self.model_copy(update={"mip": layer.info.scales.index(layer.scale(self.mip))})


class ReadsFiles(Stage):
    """Reads files beside layers, whose content is fixed when a run is launched."""

    fingerprint: Fingerprint = None

    @abstractmethod
    def _content(self) -> str:
        """What changes when the content of the files does."""

    def resolved(self) -> Self:
        """Fix the content of the files as well."""
        return super().resolved().model_copy(update={"fingerprint": self._content()})

    def provenance(self) -> dict[str, Any]:
        """Name the content in any case."""
        return {**super().provenance(), "fingerprint": self._content()}

    def _require_unchanged(self, content: str) -> None:
        """Raise InvalidParameter when the content is not the one that was fixed."""
        if self.fingerprint not in (None, content):
            raise InvalidParameter(
                "the files that are read beside the layers are not those that this run was "
                f"launched with: their content is {content}, not {self.fingerprint}; start a new "
                "run, or restore them"
            )


class WritesLayer(PyramidOptions):
    """Fills a region of a layer with voxels, and makes the first coarser mips on the way.

    Tasks are blocks of the destination.
    """

    dest: Annotated[
        LayerUrl,
        Field(
            title="Destination",
            description="Address of the layer to write. It is made where there is none; one that "
            "exists keeps its info, and gets the voxels in its own chunks.",
        ),
    ]
    skip_downsamples: Annotated[
        bool,
        Field(
            title="Skip downsamples",
            description="Write the chosen mip only.",
            json_schema_extra=section(WHAT),
        ),
    ] = False
    max_mips: Annotated[
        int,
        Field(
            ge=0,
            le=20,
            title="Most mips",
            description="How many coarser mips to make on the way, at most; fewer are made where "
            "nothing is left to pool, or `memory_target` does not allow more.",
            json_schema_extra=section(WHAT),
        ),
    ] = 5
    chunk_size: Annotated[
        ChunkSize,
        Field(
            description="Chunk size of the destination in voxels, x,y,z as 64,64,64. Empty: that "
            "of an existing destination, or the source's.",
        ),
    ] = None
    encoding: Annotated[
        Encoding,
        Field(
            description="Encoding of the destination. Empty: that of an existing destination, or "
            "the source's.",
        ),
    ] = None
    shape: Annotated[
        PositiveVec3 | None,
        Field(
            title="Task shape",
            description="Voxels of the destination that one task writes, x,y,z as 1024,1024,64. "
            "Empty: whole chunks of all mips and of the source, about 128 MB.",
            json_schema_extra=section(LIMITS),
        ),
    ] = None

    @property
    def output(self) -> str:
        """The destination."""
        return self.dest

    @abstractmethod
    def _route(self) -> "Route":
        """What is read, what is written, in which pieces; reads metadata only."""

    def _problems(self, route: "Route") -> Iterator[str]:
        """Reasons of the stage's own why the voxels cannot take that route."""
        yield from route.problems()

    def _notes(self, route: "Route") -> Iterator[str]:
        """What a user should know beside the numbers of the plan."""
        from igneous_airflow.pyramid.layout import loss_notes

        made = len(route.pyramid.levels)
        if not self.skip_downsamples and made < self.max_mips:
            why = "more do not fit in memory" if route.cut_short else "nothing is left to pool"
            yield f"{made} of {self.max_mips} coarser mips are made: after those {why}"
        written = [scale for scale, _ in route.written]
        if not route.copies:
            yield from loss_notes(self._read_scale(route), written)
        yield from older_mips(route.place.info, written[0], written[1:])
        if route.geometry.times_read > 1.001:
            yield (
                f"each voxel of the source is decoded {route.geometry.times_read:.2f} times, since "
                "its chunks reach into several blocks: a larger shape or memory_target helps"
            )

    def _read_scale(self, route: "Route") -> "Scale | None":  # noqa: ARG002
        """The scale of a layer that the voxels are read from; None where they are in files."""
        return None

    def _counts(self, route: "Route") -> dict[str, int]:  # noqa: ARG002
        """What was met in the voxels of a piece that a summary should count."""
        return {}

    def _sources(self) -> Sequence[str]:
        """The layers that the voxels come from, for the provenance."""
        return ()

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        try:
            route = self._route()
            refusals = tuple(dict.fromkeys(self._problems(route)))
            if not refusals:
                route.place.folder.check_writable(scale.key for scale, _ in route.written)
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if refusals:
            return Plan(stage=self.name, refusals=refusals)
        region, grid, geometry = route.place.region, route.cells, route.geometry
        plan = Plan(
            stage=self.name,
            writes_to=route.place.folder.url,
            tasks=len(grid),
            grid=f"a grid of {grid.shape} cells, {grid.cell.minimum(region.size)} voxels each",
            voxels=region.voxels,
            bytes_read=round(region.voxels * route.source.voxel_bytes * geometry.times_read),
            bytes_written=sum(box.voxels for _, box in route.written) * route.voxel_bytes,
            memory=geometry.bytes_in_memory,
            memory_target=self.memory_target,
            outputs=tuple(describe_scale(scale) for scale, _ in route.written),
            notes=tuple(self._notes(route)),
        )
        return self._with_replaced(plan, route)

    def _with_replaced(self, plan: Plan, route: "Route") -> Plan:
        """The plan with what would be written over."""
        from igneous_airflow.confirmation import asking_for_voxels

        place = route.place
        try:
            return asking_for_voxels(plan, self, place.folder, place.info, route.written)
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))

    def prepare(self) -> None:
        """Make the destination's info, or add the new scales to the one that is there."""
        from igneous_airflow.storage.info import add_scales
        from igneous_airflow.storage.layer import Layer

        route = self._accepted_route()
        scales = [scale for scale, _ in route.written]
        if route.place.exists:
            add_scales(route.place.folder, scales)
        else:
            Layer.create(self.dest, route.place.info.with_scales(scales))

    def cells(self) -> Sequence[BoundingBox]:
        """Blocks of the destination, each filling whole chunks of every mip that is written."""
        return self._accepted_route().cells

    def run(self, cell: BoundingBox) -> Work:
        """Write the chunks of all mips in a block."""
        route = self._accepted_route()
        done = route.carry(cell, self._write_options(route.place.info.layer_type))
        return Work(
            voxels=cell.voxels,
            chunks_written=done.chunks_written,
            chunks_skipped=done.chunks_skipped,
            bytes_written=done.bytes_written,
            files=done.files,
            left_out=tuple(done.left_out),
            counts=self._counts(route),
        )

    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check that every chunk of the destination exists, then record what was done there."""
        from igneous_airflow.pyramid.audit import ChunkAudit
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.provenance import record_processing

        route = self._accepted_route()
        layer = Layer.open(self.dest)
        audit = ChunkAudit(layer, route.cells, route.written_in)
        may_be_absent = self.skip_empty != "write"
        absent = require_files(
            audit.files_of, len(route.cells), self.dest, account, may_be_absent=may_be_absent
        )
        written = {scale.key: box for scale, box in route.written}
        record_processing(
            layer.folder, self.provenance(), by, sources=self._sources(), written=written
        )
        return Audit(outputs=audit.outputs, absent=absent)

    def _accepted_route(self) -> "Route":
        route = self._route()
        if problems := list(self._problems(route)):
            raise InvalidParameter("; ".join(problems))
        return route

    def _wishes(self) -> "ScaleWishes":
        from igneous_airflow.pyramid.layout import ScaleWishes

        return ScaleWishes(self.chunk_size, self.encoding, self.encoding_level)

    def _limits(self) -> "TaskLimits":
        from igneous_airflow.pyramid.route import TaskLimits

        return TaskLimits(
            max_mips=0 if self.skip_downsamples else self.max_mips,
            factor=self.factor or _PLANE,
            shape=self.shape,
            memory=self.memory_target,
        )


class Conversion(WritesLayer, ReadsLayer):
    """Writes the voxels of a layer into another one; what they become is the stage's own."""

    translate: Annotated[
        IntegerVec3 | None,
        Field(
            title="Translate",
            description="Move the voxels by x,y,z, as 100,-20,0, in voxels of mip 0. Empty: they "
            "stay where they are, or begin where an existing destination of the same size begins.",
            json_schema_extra=section(WHERE),
        ),
    ] = None

    def _request(self, layer: "Layer") -> "Request":
        """Which voxels go where, and what kind they become."""
        from igneous_airflow.pyramid.destination import Request

        return Request(
            mip=layer.info.scales.index(layer.scale(self.mip)),
            bounds=self.bounds,
            wishes=self._wishes(),
            translate=self.translate,
        )

    def _channel(self) -> int | None:
        """The only channel that is read; None reads all of them."""
        return None

    def _change(self, layer: "Layer") -> "Change | None":  # noqa: ARG002
        """What becomes of the voxels of the source; None leaves them as they are.

        Asked for by plans as well: whatever is expensive to get belongs into the change itself.
        """
        return None

    def _route(self) -> "Route":
        from igneous_airflow.pyramid.destination import find_destination
        from igneous_airflow.pyramid.route import find_route
        from igneous_airflow.pyramid.source import LayerSource
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.src)
        request = self._request(layer)
        place, shift, conflicts = find_destination(layer, self.dest, request)
        source = LayerSource(
            layer,
            layer.info.scales[request.mip],
            shift,
            missing=self.background_color if self.fill_missing else None,
            change=self._change(layer),
            channel=self._channel(),
        )
        route = find_route(source, place, request.wishes, self._limits())
        as_they_are = not route.pyramid.levels and self.skip_empty == "write"
        return replace(
            route,
            conflicts=(*conflicts, *route.conflicts),
            copies=as_they_are and source.has_the_files_of(place.scale, place.region),
        )

    def _problems(self, route: "Route") -> Iterator[str]:
        from igneous_airflow.pyramid.destination import place_problems
        from igneous_airflow.pyramid.layout import (
            background_problems,
            encoding_problems,
            sharding_problems,
        )

        source = layer_source(route)
        yield from sharding_problems(source.scale)
        yield from encoding_problems(source.layer.info, [source.scale])
        for dtype in dict.fromkeys((source.layer.dtype, route.place.layer.dtype)):
            yield from background_problems(dtype, self.background_color)
        misplaced = list(place_problems(source, route.place, route.geometry.unit))
        yield from misplaced or super()._problems(route)
        if misplaced:
            yield from route.conflicts

    def _notes(self, route: "Route") -> Iterator[str]:
        source, place = layer_source(route), route.place
        yield from super()._notes(route)
        if max(map(abs, source.shift)) > 0:
            origin = source.at_source(place.region)
            yield f"voxels move by {source.shift}: {origin} becomes {place.region}"
        if self.mip > 0 and not place.exists:
            yield f"the mips finer than {self.mip} are in the new info, without voxels"

    def _read_scale(self, route: "Route") -> "Scale | None":
        return layer_source(route).scale

    def _sources(self) -> Sequence[str]:
        return (self.src,)


def describe_scale(scale: "Scale") -> str:
    """A line about a scale that is made, for plans."""
    from igneous_airflow.storage.tuning import described

    encoding = described(scale.encoding, scale.tuning)
    return f"{scale.key}: {scale.size} voxels, chunks of {scale.chunk_size}, {encoding}"


def older_mips(info: "Info", finest: "Scale", made: "Sequence[Scale]") -> Iterator[str]:
    """A note on the mips that are coarser than what is made, and not made anew with it."""
    older = [
        f"{mip} ({scale.key})"
        for mip, scale in enumerate(info.scales)
        if prod(scale.resolution) > prod(finest.resolution) and scale not in made
    ]
    if older:
        yield (
            f"mips that are there already keep their old voxels: {', '.join(older)}; where the "
            "finer ones change, make them anew with downsample, or delete them"
        )


def layer_source(route: "Route") -> "LayerSource":
    """The layer that a conversion reads."""
    from igneous_airflow.pyramid.source import LayerSource

    assert isinstance(route.source, LayerSource)  # noqa: S101 - what `_route` gives
    return route.source
