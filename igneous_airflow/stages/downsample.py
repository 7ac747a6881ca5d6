"""Downsample: the coarser mips of a layer, from one of its mips."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from igneous_airflow.errors import IgneousError, InvalidParameter
from igneous_airflow.fields import (
    HOW,
    WHAT,
    Bounds,
    Factor,
    FillMissing,
    LayerUrl,
    Mip,
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.mips import count_levels, divisor_nearest_64
from igneous_airflow.proof import Account, require_files
from igneous_airflow.stage import Audit, Plan, Work
from igneous_airflow.voxel_stages import PyramidOptions, describe_scale, older_mips

if TYPE_CHECKING:
    from igneous_airflow.pyramid.layout import Pyramid
    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer


class Downsample(PyramidOptions):
    """Make coarser mips of a layer, so that a viewer can zoom out.

    Images are averaged, segmentations take the most frequent label. Tasks are blocks of the mip
    that is read; the result does not depend on how the volume was cut.
    """

    name: ClassVar[str] = "downsample"

    layer: LayerUrl
    mip: Mip = 0
    num_mips: Annotated[
        int,
        Field(
            ge=1,
            le=20,
            title="Number of mips",
            description="How many coarser mips to make; fewer are made where nothing is left to "
            "pool.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 5
    bounds: Bounds = None
    axis: Annotated[
        Literal["z", "x", "y"],
        Field(
            title="Axis kept",
            description="The axis that is not pooled, when no `factor` is given: z pools 2,2,1.",
            json_schema_extra=section(WHAT),
        ),
    ] = "z"
    factor: Annotated[
        Factor,
        Field(
            description="How many voxels are pooled on x,y,z from mip to mip: powers of two, as "
            "2,2,2 for isotropic data. Empty: 2,2,1, or as `axis` says.",
        ),
    ] = None
    fill_missing: FillMissing = False
    preserve_chunk_size: Annotated[
        bool,
        Field(
            title="Preserve chunk size",
            description="New mips get the chunk size of the mip that is read; otherwise, on each "
            "axis, its divisor nearest to 64.",
            json_schema_extra=section(HOW),
        ),
    ] = True

    @model_validator(mode="after")
    def _axis_or_factor(self) -> Self:
        if self.factor is not None and self.axis != "z":
            raise ValueError(
                f"axis: {self.axis} and factor: {self.factor} are both given; leave one "
                "at its default"
            )
        return self

    @property
    def output(self) -> str:
        """The layer."""
        return self.layer

    def resolved(self) -> Self:
        """Replace mip -1 by the coarsest mip that exists now."""
        if self.mip >= 0:
            return self
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.layer)
        return self.model_copy(update={"mip": layer.info.scales.index(layer.scale(self.mip))})

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        from igneous_airflow.confirmation import asking_for_voxels
        from igneous_airflow.pyramid.layout import (
            background_problems,
            bounds_problems,
            layer_problems,
            memory_problems,
        )
        from igneous_airflow.storage.layer import Layer

        try:
            layer = Layer.open(self.layer)
            pyramid, refusals = self._pyramid(layer)
            layer.folder.check_writable(scale.key for scale in pyramid.levels)
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        voxel_bytes = layer.dtype.itemsize * layer.info.channels
        region = pyramid.region(self.bounds)
        refusals += layer_problems(layer.info, pyramid)
        refusals += memory_problems(layer.info, pyramid, voxel_bytes, self.memory_target)
        refusals += bounds_problems(pyramid, region)
        refusals += background_problems(layer.dtype, self.background_color)
        if refusals:
            return Plan(stage=self.name, refusals=tuple(refusals))
        grid = Grid(region, pyramid.geometry.cell)
        written = self._written(pyramid, region)
        plan = Plan(
            stage=self.name,
            writes_to=layer.folder.url,
            tasks=len(grid),
            grid=f"a grid of {grid.shape} cells, {grid.cell.minimum(region.size)} voxels each",
            voxels=region.voxels,
            bytes_read=region.voxels * voxel_bytes,
            bytes_written=sum(box.voxels for _, box in written) * voxel_bytes,
            memory=pyramid.geometry.voxels_with(self._width(layer, pyramid)) * voxel_bytes,
            memory_target=self.memory_target,
            outputs=tuple(map(describe_scale, pyramid.levels)),
            notes=tuple(self._notes(layer, pyramid)),
        )
        try:
            return asking_for_voxels(plan, self, layer.folder, layer.info, written)
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))

    def prepare(self) -> None:
        """Add the new scales to the layer's info."""
        from igneous_airflow.storage.info import add_scales
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.layer)
        add_scales(layer.folder, self._accepted_pyramid(layer).levels)

    def cells(self) -> Sequence[BoundingBox]:
        """Blocks of the mip that is read, each filling whole chunks of every new mip."""
        from igneous_airflow.storage.layer import Layer

        pyramid = self._accepted_pyramid(Layer.open(self.layer))
        return Grid(pyramid.region(self.bounds), pyramid.geometry.cell)

    def run(self, cell: BoundingBox) -> Work:
        """Read a block tile by tile and write the chunks of all coarser mips in it."""
        from igneous_airflow.pyramid.writer import PyramidWriter
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.overlap import Overlap

        layer = Layer.open(self.layer)
        pyramid = self._accepted_pyramid(layer)
        missing = self.background_color if self.fill_missing else None
        read = partial(layer.read, pyramid.source, missing=missing)
        options = self._write_options(layer.info.layer_type)
        with Overlap(self._width(layer, pyramid)) as overlap:
            writer = PyramidWriter(layer, pyramid, options, overlap)
            for tile, voxels in overlap.map(read, pyramid.tiles(cell)):
                writer.push(tile, voxels)
            writer.close()
        return Work(
            voxels=cell.voxels,
            chunks_written=writer.chunks_written,
            chunks_skipped=writer.chunks_skipped,
            bytes_written=writer.bytes_written,
            files=writer.files,
            left_out=tuple(writer.left_out),
        )

    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check that every chunk of the new mips exists, then record what was done."""
        from igneous_airflow.pyramid.audit import ChunkAudit
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.provenance import record_processing

        layer = Layer.open(self.layer)
        pyramid = self._accepted_pyramid(layer)
        cells = Grid(pyramid.region(self.bounds), pyramid.geometry.cell)

        audit = ChunkAudit(layer, cells, partial(self._written, pyramid))
        may_be_absent = self.skip_empty != "write"
        absent = require_files(
            audit.files_of, len(cells), self.layer, account, may_be_absent=may_be_absent
        )
        written = {scale.key: box for scale, box in self._written(pyramid, cells.box)}
        record_processing(layer.folder, self.provenance(), by, written=written)
        return Audit(outputs=audit.outputs, absent=absent)

    @staticmethod
    def _written(pyramid: "Pyramid", box: BoundingBox) -> "list[tuple[Scale, BoundingBox]]":
        """The scales that a box of the source becomes, and its box in each."""
        levels = enumerate(pyramid.levels, start=1)
        return [(scale, pyramid.level_box(level, box)) for level, scale in levels]

    def _factor(self) -> Vec3:
        if self.factor is not None:
            return self.factor
        return Vec3(*(1 if axis == self.axis else 2 for axis in "xyz"))

    def _pyramid(self, layer: "Layer") -> "tuple[Pyramid, list[str]]":
        """The scales to make, and their conflicts with scales that exist."""
        from igneous_airflow.pyramid.layout import Pyramid, ScaleWishes, coarser_scales

        source = layer.scale(self.mip)
        factor = self._factor()
        wishes = ScaleWishes(
            chunk_size=self.chunk_size,
            encoding=self.encoding,
            encoding_level=self.encoding_level,
            default_chunk_size=None
            if self.preserve_chunk_size
            else Vec3(*map(divisor_nearest_64, source.chunk_size)),
        )
        count = count_levels(source.size, factor, self.num_mips)
        scales, conflicts = coarser_scales(layer.info, source, factor, count, wishes)
        return Pyramid(source, scales, factor), conflicts

    def _width(self, layer: "Layer", pyramid: "Pyramid") -> int:
        """How many storage operations a task keeps under way."""
        voxel_bytes = layer.dtype.itemsize * layer.info.channels
        return pyramid.geometry.fitting_width(layer.overlap_width, voxel_bytes, self.memory_target)

    def _accepted_pyramid(self, layer: "Layer") -> "Pyramid":
        pyramid, conflicts = self._pyramid(layer)
        if conflicts:
            raise InvalidParameter("; ".join(conflicts))
        return pyramid

    def _notes(self, layer: "Layer", pyramid: "Pyramid") -> Iterator[str]:
        from igneous_airflow.pyramid.layout import loss_notes

        made = len(pyramid.levels)
        if made < self.num_mips:
            yield f"{made} of {self.num_mips} mips are made: after those nothing is left to pool"
        yield from loss_notes(pyramid.source, pyramid.levels)
        present = [s.key for s in pyramid.levels if layer.info.scale_in(s.key) is not None]
        if present:
            yield f"mips that are there already are made anew: {', '.join(present)}"
        yield from older_mips(layer.info, pyramid.source, pyramid.levels)
