"""Luminance levels: the histogram of each section of an image, from a sample of its voxels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field

from igneous_airflow.errors import IgneousError, InvalidParameter
from igneous_airflow.fields import (
    LIMITS,
    WHAT,
    WHERE,
    Bounds,
    Confirm,
    FillMissing,
    IntegerVec3,
    LayerUrl,
    LevelsPath,
    MemoryTarget,
    Mip,
    PositiveVec3,
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Slab, Slabs
from igneous_airflow.geometry.patches import Patches, Sample
from igneous_airflow.proof import Account, FoundFile, require_files
from igneous_airflow.stage import Audit, Plan, Stage, Work

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from igneous_airflow.kernels.histogram import Counts
    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.storage.levels import LevelsFolder
    from igneous_airflow.storage.overlap import Overlap

_PATCH_EDGE = 2048  # voxels, as Igneous has it
_TASK_BYTES = 1 << 26  # of sampled voxels, where the number of sections of a task is not given
_TEXT_BYTES = 64  # for each number on its way into a file


class LuminanceLevels(Stage):
    """Count how often each grey value occurs in each section of an image.

    The histograms are what `contrast_normalization` works by. They are counted on a sample of
    patches of each section. Tasks are sections that share chunks.
    """

    name: ClassVar[str] = "luminance_levels"

    layer: LayerUrl
    mip: Mip = 0
    bounds: Bounds = None
    offset: Annotated[
        IntegerVec3 | None,
        Field(
            title="Offset",
            description="First voxel of the part that is sampled, x,y,z, as 0,0,100, in voxels of "
            "the chosen mip; sections before it are left out. Empty: where the bounds begin.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    shape: Annotated[
        PositiveVec3 | None,
        Field(
            title="Shape",
            description="Voxels of each section that patches are drawn from, x,y, and how many "
            "sections a task counts, z: 8192,8192,16 for example. Empty: all that is within the "
            "bounds, and as many sections as share chunks.",
            json_schema_extra=section(LIMITS),
        ),
    ] = None
    coverage_factor: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            allow_inf_nan=False,
            title="Coverage factor",
            description="Share of each section to count, 1 for all of it. Patches of about 2048 x "
            "2048 voxels are drawn by lot, at least one.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 0.01
    seed: Annotated[
        int,
        Field(
            ge=0,
            le=2**53,
            title="Seed",
            description="Another number draws other patches; the same one draws the same again.",
            json_schema_extra=section(WHAT),
        ),
    ] = 0
    levels_path: Annotated[
        LevelsPath,
        Field(
            description="Address of the folder that gets the histograms, as levels/MIP/Z: "
            "gs://BUCKET/PATH, or a path as /data/folder. Empty: the layer itself.",
        ),
    ] = None
    fill_missing: Annotated[
        FillMissing,
        Field(
            description="Leave missing chunks out of the histograms instead of failing with their "
            "names.",
        ),
    ] = False
    memory_target: MemoryTarget = 3_500_000_000
    confirm: Confirm = False

    def resolved(self) -> Self:
        """Replace mip -1 by the coarsest mip that exists now."""
        if self.mip >= 0:
            return self
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.layer)
        return self.model_copy(update={"mip": layer.info.scales.index(layer.scale(self.mip))})

    def plan(self) -> Plan:
        """Count tasks, voxels, bytes and memory, and name every reason to refuse."""
        try:
            image = self._image()
            refusals = tuple(image.problems())
            if not refusals:
                image.levels.folder.check_writable([image.levels.prefix])
                return self._asking(self._counted(image), image)
        except IgneousError as error:
            refusals = (str(error),)
        return Plan(stage=self.name, refusals=refusals)

    def _asking(self, plan: Plan, image: "_Image") -> Plan:
        """The plan with the levels that it replaces."""
        from igneous_airflow.confirmation import Replaced, asking
        from igneous_airflow.storage.existing import Existing
        from igneous_airflow.storage.provenance import made_by

        sizes, name = image.levels.sizes(), image.name
        there = [sizes[z] for z in image.sections if z in sizes]
        if not there:
            return plan
        method = made_by(image.levels.folder, image.written)[name]
        found = Existing(len(there), sum(there))
        replaced = Replaced(name, found, method, kind="histogram")
        return asking(plan, self, f"the levels in {image.levels.place}", [replaced])

    def _counted(self, image: "_Image") -> Plan:
        sections, sample, levels = image.sections, image.sample, image.levels
        return Plan(
            stage=self.name,
            writes_to=image.levels.folder.url,
            tasks=len(image.slabs),
            grid=f"slabs of {min(image.slabs.depth, len(sections)):,} sections",
            voxels=sample.voxels,
            bytes_read=sample.voxels * image.layer.dtype.itemsize,
            bytes_written=len(sections) * levels.usual_bytes,
            memory=image.bytes_in_memory,
            memory_target=self.memory_target,
            outputs=(f"{levels.place}/Z: histograms of the sections {sections}",),
            notes=tuple(image.notes()),
        )

    def prepare(self) -> None:
        """Write nothing: tasks rely on nothing but the layer."""
        self._accepted_image()

    def cells(self) -> Sequence[Slab]:
        """Sections that share chunks."""
        return self._accepted_image().slabs

    def run(self, cell: Slab) -> Work:
        """Read the drawn patches of some sections, chunk by chunk, and write their histograms."""
        from igneous_airflow.storage.levels import Levels
        from igneous_airflow.storage.overlap import Overlap

        image = self._accepted_image()
        area = image.sample.patches.box.size.x * image.sample.patches.box.size.y
        work = Work()
        with Overlap(image.layer.overlap_width) as overlap:
            for slab in image.chunk_layers(cell):
                patches = image.sample.of(slab)
                largest = max((patch.size for patch in patches), key=lambda size: size.x * size.y)
                counts = image.count(slab, patches, overlap)
                for z, row in zip(slab, counts, strict=True):
                    levels = Levels(
                        counts=row,
                        patch_size=(largest.x, largest.y, 1),
                        num_patches=len(patches),
                        coverage_ratio=int(row.sum()) / area,
                    )
                    stored = image.levels.write(z, levels)
                    name = image.levels.name(z)
                    work += Work(voxels=int(row.sum()), bytes_written=stored, files={name: stored})
        return work

    @property
    def output(self) -> str:
        """The folder of the levels."""
        return self.levels_path or self.layer

    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check that every section has its levels, then record where they are from."""
        from igneous_airflow.storage.provenance import record_processing

        image = self._accepted_image()
        levels, slabs, present = image.levels, image.slabs, image.levels.sizes()

        def files_of(block: int) -> Iterator[FoundFile]:
            return (FoundFile(levels.name(z), present.get(z)) for z in slabs[block])

        require_files(files_of, len(slabs), levels.folder.url, account)
        elsewhere = image.levels.folder.url != image.layer.folder.url
        sources = (self.layer,) if elsewhere else ()
        record_processing(
            image.levels.folder, self.provenance(), by, sources=sources, written=image.written
        )
        return Audit(outputs={image.name: len(image.sections)}, files="histograms")

    def _image(self) -> "_Image":
        from igneous_airflow.storage.layer import Layer

        layer = Layer.open(self.layer)
        return _Image(self, layer, layer.scale(self.mip))

    def _accepted_image(self) -> "_Image":
        image = self._image()
        if problems := list(image.problems()):
            raise InvalidParameter("; ".join(problems))
        return image


@dataclass(frozen=True)
class _Image:
    """The mip that a stage samples, and what of it; not to be worked on while it has problems."""

    stage: LuminanceLevels
    layer: "Layer"
    scale: "Scale"

    @property
    def mip(self) -> int:
        """The number of the mip, not -1."""
        return self.layer.info.scales.index(self.scale)

    @property
    def region(self) -> BoundingBox:
        """The box that the bounds allow."""
        bounds = self.stage.bounds
        return self.scale.bounds if bounds is None else BoundingBox.parse(bounds)

    @property
    def sample(self) -> Sample:
        """What is counted."""
        stage, high = self.stage, self.region.max
        low = stage.offset or self.region.min
        if stage.shape is not None:
            high = Vec3(*(low + stage.shape).minimum(high))
        box = BoundingBox(low, Vec3(high.x, high.y, self.region.max.z))
        patches = Patches(box, self.scale.chunk_size, self.scale.voxel_offset, _PATCH_EDGE)
        return Sample(patches, stage.coverage_factor, f"{stage.seed}/{self.mip}")

    @property
    def sections(self) -> Slab:
        """Every section that is counted."""
        box = self.sample.patches.box
        return Slab(box.min.z, box.max.z)

    @property
    def levels(self) -> "LevelsFolder":
        """Where the histograms go."""
        from igneous_airflow.storage.levels import LevelsFolder

        url = self.stage.levels_path or self.stage.layer
        return LevelsFolder(url, self.mip, self.layer.info.data_type)

    @property
    def name(self) -> str:
        """The folder of the histograms in theirs."""
        return f"levels/{self.mip}"

    @property
    def written(self) -> dict[str, BoundingBox]:
        """What gets histograms, which are of whole sections, wherever they were sampled."""
        low, high = self.scale.bounds.min, self.scale.bounds.max
        low, high = (
            Vec3(low.x, low.y, self.sections.start),
            Vec3(high.x, high.y, self.sections.stop),
        )
        return {self.name: BoundingBox(low, high)}

    @property
    def slabs(self) -> Slabs:
        """The sections of each task: by default whole chunks, enough of them for a task's while."""
        chunk = self.scale.chunk_size.z
        bytes_a_section = self.sample.voxels * self.layer.dtype.itemsize // len(self.sections)
        layers = max(_TASK_BYTES // max(bytes_a_section * chunk, 1), 1)
        depth = self.stage.shape.z if self.stage.shape else layers * chunk
        return Slabs(self.sections, depth, self.scale.voxel_offset.z)

    def chunk_layers(self, slab: Slab) -> Slabs:
        """The sections of a task, cut between chunks."""
        return Slabs(slab, self.scale.chunk_size.z, self.scale.voxel_offset.z)

    def count(self, slab: Slab, patches: list[BoundingBox], overlap: "Overlap") -> "Counts":
        """Count the grey values of each section in its patches, reading each chunk once."""
        import numpy as np

        from igneous_airflow.kernels.histogram import count_sections

        counts = np.zeros((len(slab), self.levels.bins), np.int64)
        places = (
            (chunk, chunk.intersection(patch))
            for patch in patches
            for chunk in self.scale.chunks.overlapping(patch)
        )
        for (chunk, part), voxels in overlap.map(self._read, places):
            if voxels is not None:
                count_sections(voxels[part.slices_within(chunk)], counts)
        return counts

    def _read(self, place: tuple[BoundingBox, BoundingBox]) -> "NDArray[Any] | None":
        chunk, _ = place
        if self.stage.fill_missing:
            return self.layer.read_chunk(self.scale, chunk)
        return self.layer.read(self.scale, chunk)

    @property
    def bytes_in_memory(self) -> int:
        """The histograms of a layer of chunks, chunks on their way in, and what counting takes."""
        from igneous_airflow.kernels.histogram import COUNT_BYTES, PIECE

        chunk = self.scale.chunk_size.minimum(self.scale.size)
        depth = min(chunk.z, self.slabs.depth, len(self.sections))
        chunks = 2 * (self.layer.overlap_width + 1) * chunk.product * self.layer.dtype.itemsize
        counted = min(chunk.x * chunk.y, PIECE) * COUNT_BYTES
        return chunks + counted + self.levels.bins * (depth * COUNT_BYTES + _TEXT_BYTES)

    def problems(self) -> Iterator[str]:
        """Every reason why it cannot be sampled."""
        from igneous_airflow.pyramid.layout import encoding_problems, sharding_problems
        from igneous_airflow.storage.levels import grey_problems

        problems = [
            *sharding_problems(self.scale),
            *encoding_problems(self.layer.info, [self.scale]),
            *grey_problems(self.layer.info),
        ]
        yield from problems
        if not self.scale.bounds:
            yield f"scale {self.scale.key} has no voxels: its size is {self.scale.size}"
        elif not self.scale.bounds.contains(self.region):
            yield f"bounds: {self.region} reaches out of the volume, which is {self.scale.bounds}"
        elif not self.sample.patches.box or not self.region.contains(self.sample.patches.box):
            yield f"offset: {self.stage.offset} lies outside of {self.region}"
        elif not problems and self.bytes_in_memory > self.stage.memory_target:
            yield (
                f"memory_target: {self.stage.memory_target:,} bytes are too few for a task, which "
                f"needs {self.bytes_in_memory:,} for chunks of {self.scale.chunk_size} voxels and "
                "their histograms: raise memory_target"
            )

    def notes(self) -> Iterator[str]:
        """What a user should know beside the numbers of the plan."""
        patches, size = len(self.sample.patches), self.sample.size
        if size < patches:
            part = f"{size:,} of {patches:,} patches, {size / patches:.3g} of it, are"
        else:
            part = "all of it is"
        yield f"of each section {part} counted"
        depth, chunk = self.slabs.depth, self.scale.chunk_size.z
        if depth % chunk and len(self.slabs) > 1:
            yield (
                f"chunks are {chunk} sections deep, so that some are read by several tasks: let z "
                f"of the shape be a multiple of {chunk}"
            )
