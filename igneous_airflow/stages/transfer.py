"""Transfer: a layer's voxels into another layer, in other chunks, with coarser mips on the way."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import Field, model_validator

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
    Encoding,
    Factor,
    FillMissing,
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
from igneous_airflow.stage import Account, Audit, Plan, Stage, Work, count_left_out

if TYPE_CHECKING:
    from igneous_airflow.pyramid.route import Route

_PLANE = Vec3(2, 2, 1)


class Transfer(Stage):
    """Copy a layer to another place, in chunks of another size or encoding where asked for.

    The first coarser mips are made on the way. Tasks are blocks of the destination. When nothing
    changes but the place, chunk files are copied as they are. The source is never written to.
    """

    name: ClassVar[str] = "transfer"

    src: Annotated[
        LayerUrl,
        Field(
            title="Source",
            description="Address of the Precomputed layer to read: gs://BUCKET/PATH, "
            "s3://BUCKET/PATH, or an absolute path on this machine as /data/layer.",
        ),
    ]
    dest: Annotated[
        LayerUrl,
        Field(
            title="Destination",
            description="Address of the layer to write. It is made where there is none; one that "
            "exists keeps its info, and gets the voxels in its own chunks.",
        ),
    ]
    mip: Mip = 0
    bounds: Bounds = None
    translate: Annotated[
        IntegerVec3 | None,
        Field(
            title="Translate",
            description="Move the voxels by x,y,z, in voxels of mip 0. Empty: they stay where they "
            "are, or begin where an existing destination of the same size begins.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    dest_voxel_offset: Annotated[
        IntegerVec3 | None,
        Field(
            title="Destination voxel offset",
            description="Where the source's first voxel, or that of a cutout, comes to lie: x,y,z "
            "in voxels of mip 0. Another way to say `translate`.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    cutout: Annotated[
        bool,
        Field(
            title="Cutout",
            description="A new destination is as large as the `bounds`, not as the source.",
            json_schema_extra=section(WHERE),
        ),
    ] = False
    clean_info: Annotated[
        bool,
        Field(
            title="Clean info",
            description="Leave what is not about voxels, as meshes and skeletons, out of a new "
            "destination's info; their files are not copied either way.",
            json_schema_extra=section(WHERE),
        ),
    ] = False
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
    factor: Factor = None
    method: PoolingMethod = "auto"
    sparse: Sparse = False
    fill_missing: FillMissing = False
    background_color: BackgroundColor = 0
    skip_empty: SkipEmpty = "write"
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
    compress: Annotated[
        Compress,
        Field(
            description="Compression of chunk files after encoding; auto is gzip for raw and "
            "label encodings, none for jpeg, png and the like, and leaves files that are copied "
            "as they are.",
        ),
    ] = "auto"
    compress_level: CompressLevel = None
    shape: Annotated[
        PositiveVec3 | None,
        Field(
            title="Task shape",
            description="Voxels of the destination that one task writes, x,y,z. Empty: whole "
            "chunks of all mips and of the source, about 128 MB.",
            json_schema_extra=section(LIMITS),
        ),
    ] = None
    memory_target: MemoryTarget = 3_500_000_000

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.translate is not None and self.dest_voxel_offset is not None:
            raise ValueError("translate and dest_voxel_offset are both given; leave one empty")
        if self.cutout and self.bounds is None:
            raise ValueError("cutout: there are no bounds to cut out; set bounds as well")
        return self

    def resolved(self) -> Self:
        """Replace mip -1 by the source's coarsest mip."""
        if self.mip >= 0:
            return self
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.src)
        return self.model_copy(update={"mip": layer.info.scales.index(layer.scale(self.mip))})

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        try:
            route = self._route()
            refusals = list(route.problems())
            if not refusals:
                route.folder.check_writable()
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if refusals:
            return Plan(stage=self.name, refusals=tuple(refusals))
        region, grid = route.place.region, route.cells
        return Plan(
            stage=self.name,
            tasks=len(grid),
            grid=f"a grid of {grid.shape} cells, {grid.cell.minimum(region.size)} voxels each",
            voxels=region.voxels,
            bytes_read=round(region.voxels * route.voxel_bytes * route.geometry.times_read),
            bytes_written=sum(box.voxels for _, box in route.written) * route.voxel_bytes,
            memory=route.geometry.bytes_in_memory,
            memory_target=self.memory_target,
            outputs=tuple(
                f"{scale.key}: {scale.size} voxels, chunks of {scale.chunk_size}, {scale.encoding}"
                for scale, _ in route.written
            ),
            notes=tuple(self._notes(route)),
        )

    def prepare(self) -> None:
        """Make the destination's info, or add the new scales to the one that is there."""
        from igneous_airflow.storage.info import add_scales
        from igneous_airflow.storage.layer import Layer

        route = self._accepted_route()
        scales = [scale for scale, _ in route.written]
        if route.exists:
            add_scales(route.folder, scales)
        else:
            Layer.create(self.dest, route.place.info.with_scales(scales))

    def cells(self) -> Sequence[BoundingBox]:
        """Blocks of the destination, each filling whole chunks of every mip that is written."""
        return self._accepted_route().cells

    def run(self, cell: BoundingBox) -> Work:
        """Write the chunks of all mips in a block, or copy the chunk files of the source."""
        from igneous_airflow.pyramid.writer import WriteOptions

        route = self._accepted_route()
        options = WriteOptions.of(self, route.place.info.layer_type)
        done = route.carry(cell, options, self.background_color if self.fill_missing else None)
        return Work(
            voxels=cell.voxels,
            chunks_written=done.chunks_written,
            chunks_skipped=done.chunks_skipped,
            bytes_written=done.bytes_written,
            left_out=tuple(done.left_out),
        )

    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check that every chunk of the destination exists, then record what was done there."""
        from igneous_airflow.pyramid.audit import ChunkAudit
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.provenance import record_processing

        route = self._accepted_route()
        layer = Layer.open(self.dest)
        audit = ChunkAudit(layer, route.cells, route.written_in)
        absent = count_left_out(
            audit.absent(), self.dest, account, may_be_absent=self.skip_empty != "write"
        )
        method = {"task": "TransferTask", **self.parameters()}
        record_processing(layer.folder, method, by, sources=[self.src])
        return Audit(outputs=audit.outputs, absent=absent)

    def _route(self) -> "Route":
        from igneous_airflow.pyramid.destination import Request
        from igneous_airflow.pyramid.layout import ScaleWishes
        from igneous_airflow.pyramid.route import TaskLimits, find_route

        request = Request(
            mip=self.mip,
            bounds=self.bounds,
            translate=self.translate,
            dest_voxel_offset=self.dest_voxel_offset,
            cutout=self.cutout,
            clean_info=self.clean_info,
            wishes=ScaleWishes(chunk_size=self.chunk_size, encoding=self.encoding),
        )
        limits = TaskLimits(
            max_mips=0 if self.skip_downsamples else self.max_mips,
            factor=self.factor or _PLANE,
            shape=self.shape,
            memory=self.memory_target,
            files_as_they_are=self.skip_empty == "write",
            background=self.background_color,
        )
        return find_route(self.src, self.dest, request, limits)

    def _accepted_route(self) -> "Route":
        route = self._route()
        if problems := list(route.problems()):
            raise InvalidParameter("; ".join(problems))
        return route

    def _notes(self, route: "Route") -> Iterator[str]:
        place, made = route.place, len(route.pyramid.levels)
        if route.copies:
            yield "chunk files are copied as they are: nothing changes but the place"
        elif place.source.encoding in ("jpeg", "jxl"):
            yield f"the source is stored as lossy {place.source.encoding}; its losses go on"
        if not self.skip_downsamples and made < self.max_mips:
            why = "more do not fit in memory" if route.cut_short else "nothing is left to pool"
            yield f"{made} of {self.max_mips} coarser mips are made: after those {why}"
        if route.geometry.times_read > 1.001:
            yield (
                f"each voxel of the source is decoded {route.geometry.times_read:.2f} times, since "
                "its chunks reach into several blocks: a larger shape or memory_target helps"
            )
        if max(map(abs, place.shift)) > 0:
            yield f"voxels move by {place.shift}: {place.origin} becomes {place.region}"
        if self.mip > 0 and not route.exists:
            yield f"the mips finer than {self.mip} are in the new info, without voxels"
        others = sorted({"mesh", "skeletons", "segment_properties"} & place.info.data.keys())
        if others and not route.exists:
            yield f"the new info names {', '.join(others)}, whose files are not copied"
