"""A transfer laid out: what is read, what is written, in which pieces; and doing a piece."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock

from igneous_airflow.errors import LayerNotFound
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.mips import count_levels
from igneous_airflow.geometry.rechunk import RechunkGeometry
from igneous_airflow.pyramid.destination import (
    Destination,
    Request,
    find_destination,
    place_problems,
)
from igneous_airflow.pyramid.layout import (
    Pyramid,
    background_problems,
    coarser_scales,
    count_problems,
    encoding_problems,
    sharding_problems,
)
from igneous_airflow.pyramid.writer import PyramidWriter, WriteOptions
from igneous_airflow.storage.files import Folder, open_folder
from igneous_airflow.storage.info import Info, Scale, read_info
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.overlap import Overlap


@dataclass(frozen=True, slots=True)
class TaskLimits:
    """How a transfer may be cut into tasks; `memory` in bytes, `shape` in voxels of a task.

    `files_as_they_are` allows to copy chunk files without looking into them.
    """

    max_mips: int
    factor: Vec3
    shape: Vec3 | None
    memory: int
    files_as_they_are: bool
    background: float


@dataclass(frozen=True)
class Route:
    """A source, a destination, and the pieces in which the voxels go there."""

    source: Layer
    folder: Folder  # of the destination
    exists: bool
    place: Destination
    pyramid: Pyramid
    limits: TaskLimits
    conflicts: tuple[str, ...]
    cut_short: bool = False  # whether memory allows fewer mips than there could be

    @property
    def voxel_bytes(self) -> int:
        """Bytes of a voxel with all channels."""
        return self.source.dtype.itemsize * self.source.info.channels

    @cached_property
    def dest(self) -> Layer:
        """The destination, by the info that it has or will have."""
        return Layer(self.folder, self.place.info)

    @cached_property
    def width(self) -> int:
        """How many storage operations to keep under way where memory allows."""
        return max(self.source.overlap_width, self.dest.overlap_width)

    @cached_property
    def geometry(self) -> RechunkGeometry:
        """The sizes alone, relative to the region."""
        scales = (self.place.scale, *self.pyramid.levels)
        return RechunkGeometry(
            size=self.place.region.size,
            factor=self.pyramid.factor,
            chunks=tuple(scale.chunk_size for scale in scales),
            read=self.place.source.chunk_size,
            phase=self.place.phase,
            voxel_bytes=self.voxel_bytes,
            memory=self.limits.memory,
            shape=self.limits.shape,
            width=self.width,
        ).fitting()

    @cached_property
    def copies(self) -> bool:
        """Whether chunk files are copied without being decoded."""
        alone = not self.pyramid.levels and self.limits.files_as_they_are
        return alone and self.place.has_the_same_chunks

    @property
    def cells(self) -> Grid:
        """The pieces, in voxels of the destination."""
        return Grid(self.place.region, self.geometry.cell)

    @property
    def written(self) -> list[tuple[Scale, BoundingBox]]:
        """Each scale that is written, and the region of it."""
        return self.written_in(self.place.region)

    def written_in(self, box: BoundingBox) -> list[tuple[Scale, BoundingBox]]:
        """Each scale that a cell or the whole region writes, and the box of it."""
        levels = enumerate(self.pyramid.levels, start=1)
        coarser = [(scale, self.pyramid.level_box(level, box)) for level, scale in levels]
        return [(self.place.scale, box), *coarser]

    def problems(self) -> Iterator[str]:
        """Every reason why the transfer cannot be done."""
        place, info = self.place, self.source.info
        yield from self.conflicts
        if _same_place(self.source.folder, self.folder):
            yield f"src and dest are the same layer, {self.source.folder.url}"
        yield from sharding_problems(place.source)
        yield from encoding_problems(info, (place.source, place.scale, *self.pyramid.levels))
        yield from background_problems(self.source.dtype, self.limits.background)
        misplaced = list(place_problems(place, self.geometry.unit))
        yield from misplaced
        shape, unit = self.limits.shape, self.geometry.unit
        if shape is not None and shape % unit != Vec3.full(0):
            fitting = shape.ceil_div(unit) * unit
            yield (
                f"shape: tasks of {shape} voxels would fill only parts of chunks, which come in "
                f"blocks of {unit} voxels with all mips: use {fitting}, or fewer mips"
            )
            return
        if misplaced:
            return
        yield from count_problems(self.cells)
        if self.geometry.bytes_in_memory > self.limits.memory:
            yield (
                f"memory_target: {self.limits.memory:,} bytes are too few for a task, which needs "
                f"{self.geometry.bytes_in_memory:,}: raise memory_target, or choose a smaller "
                "chunk_size"
            )

    def carry(
        self, cell: BoundingBox, options: WriteOptions, missing: float | None
    ) -> "PyramidWriter | FileCopier":
        """Do one piece; the answer counts what was written.

        `missing` fills missing chunks; with None, one of them raises MissingChunk.
        """
        with Overlap(self.geometry.width) as overlap:
            if self.copies:
                copier = FileCopier(self, options, missing)
                for chunk in self.place.scale.chunks.overlapping(cell):
                    overlap.submit(partial(copier.copy, chunk))
                return copier
            writer = PyramidWriter(self.dest, self.pyramid, options, overlap, finest=True)
            origin = self.place.region.min
            for tile in self.geometry.tiles(cell.translated(origin * -1)):
                box = tile.translated(origin)
                voxels = self.source.read(
                    self.place.source,
                    self.place.at_source(box),
                    missing=missing,
                    overlap=overlap,
                )
                writer.push(box, voxels)
                del voxels  # before the next tile is read, so that memory holds one
            writer.close()
            return writer


@dataclass
class FileCopier:
    """Copies chunk files of a route as they are, and counts them; may be used by many threads."""

    route: Route
    options: WriteOptions
    missing: float | None
    chunks_written: int = 0
    chunks_skipped: int = 0
    bytes_written: int = 0
    left_out: tuple[str, ...] = ()
    _counting: Lock = field(default_factory=Lock)

    def copy(self, chunk: BoundingBox) -> None:
        """Copy the file of one chunk of the destination; one that is missing is filled."""
        route, options = self.route, self.options
        at, scale = route.place.at_source(chunk), route.place.source
        stored = route.source.folder.read(f"{scale.key}/{at}")
        if stored is None:
            voxels = route.source.read(scale, at, missing=self.missing)
            size = route.dest.write_chunk(
                route.place.scale,
                chunk,
                voxels,
                compress=options.compress,
                level=options.compress_level,
            )
        else:
            size = route.dest.copy_chunk(
                route.place.scale,
                chunk,
                stored,
                compress=options.compress,
                level=options.compress_level,
            )
        with self._counting:
            self.chunks_written += 1
            self.bytes_written += size


def find_route(src: str, dest: str, request: Request, limits: TaskLimits) -> Route:
    """Lay a transfer out with as many mips as its memory allows; reads metadata only.

    Raises LayerNotFound, InvalidInfo and the like, and InvalidParameter when nothing can be laid
    out; all that is wrong beyond that is in the route's `problems`.
    """
    source, folder = Layer.open(src), open_folder(dest)
    mip = source.info.scales.index(source.scale(request.mip))
    request = replace(request, mip=mip)
    present: Info | None = None
    with suppress(LayerNotFound):
        present = read_info(folder)
    place, conflicts = find_destination(source.info, present, request)
    count = count_levels(place.scale.size, limits.factor, limits.max_mips)
    levels, in_the_way = coarser_scales(
        place.info, place.scale, limits.factor, count, request.wishes
    )
    every = tuple(dict.fromkeys([*conflicts, *in_the_way]))
    pyramid = Pyramid(place.scale, levels, limits.factor)
    route = Route(source, folder, present is not None, place, pyramid, limits, every)
    while (
        route.pyramid.levels
        and route.place.origin
        and route.geometry.bytes_in_memory > limits.memory
    ):
        fewer = replace(route.pyramid, levels=route.pyramid.levels[:-1])
        route = replace(route, pyramid=fewer, cut_short=True)
    return route


def _same_place(one: Folder, other: Folder) -> bool:
    paths = [folder.url.removeprefix("file://") for folder in (one, other)]
    if all(path.startswith("/") for path in paths):
        return Path(paths[0]).resolve() == Path(paths[1]).resolve()
    return one.url == other.url
