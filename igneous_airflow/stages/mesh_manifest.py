"""Mesh manifest: for every label the list of its fragments, without which no viewer shows it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from igneous_airflow.errors import AuditFailed, IgneousError, InvalidParameter
from igneous_airflow.fields import HOW, LIMITS, Confirm, LayerUrl, section
from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.prefixes import Prefixes, PrefixGroup
from igneous_airflow.proof import Account, FoundFile, require_files
from igneous_airflow.stage import Audit, Plan, Stage, Work, human_bytes
from igneous_airflow.wording import counted

if TYPE_CHECKING:
    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.storage.mesh_info import MeshInfo
    from igneous_airflow.storage.mesh_record import Record
    from igneous_airflow.storage.meshes import MeshFolder

_GROUPS_ON_DISK = 8  # where each task reads the whole listing
_NAMED_AT_MOST = 10
_LOOKED_AT = 200_000  # files, for a plan; tasks look at all of them


class MeshManifest(Stage):
    """Put the fragments of each label together, so that a viewer finds its mesh.

    To be run when `mesh` has finished. Tasks are groups of labels that begin with the same digits.
    """

    name: ClassVar[str] = "mesh_manifest"

    layer: LayerUrl
    magnitude: Annotated[
        int,
        Field(
            ge=1,
            le=6,
            title="Magnitude",
            description="Labels are shared out by their first digits, so many of them: 3 makes "
            "999 tasks in a bucket, and at most 8 on a disk, which is listed by each task.",
            json_schema_extra=section(LIMITS),
        ),
    ] = 3
    remove_stale: Annotated[
        bool,
        Field(
            title="Remove stale fragments",
            description="Delete fragments of an earlier grid or of blocks that are no part of the "
            "meshes, and manifests of labels that have no fragments; otherwise they are named, and "
            "nothing is done.",
            json_schema_extra=section(HOW),
        ),
    ] = False
    allow_incomplete: Annotated[
        bool,
        Field(
            title="Allow incomplete",
            description="Make manifests although blocks have not been meshed yet; these are left "
            "out.",
            json_schema_extra=section(HOW),
        ),
    ] = False
    confirm: Confirm = False

    @property
    def output(self) -> str:
        """The layer."""
        return self.layer

    def plan(self) -> Plan:
        """Count labels and fragments, and name every reason to refuse."""
        try:
            job = self._job()
            census = _Census(job, job.meshes.sizes(), most=_LOOKED_AT)
            unfinished, stale = tuple(self._unfinished(job)), tuple(self._stale(job, census))
            if not unfinished and not stale:
                job.layer.folder.check_writable([job.meshes.directory])
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if unfinished or stale:
            awaited = unfinished if census.strays else unfinished + stale
            return Plan(stage=self.name, refusals=unfinished + stale, awaited=awaited)
        at_least = "at least " if census.is_cut else ""
        labels = counted(len(census.cells), "label")
        fragments = counted(sum(map(len, census.cells.values())), "fragment")
        plan = Plan(
            stage=self.name,
            writes_to=job.layer.folder.url,
            tasks=len(job.groups),
            grid="groups of labels by their first digits",
            outputs=(f"{job.meshes.directory}: manifests of {at_least}{labels} with {fragments}",),
            notes=tuple(self._notes(job, census)),
        )
        return self._asking(plan, job, census)

    def _asking(self, plan: Plan, job: "_Job", census: "_Census") -> Plan:
        """The plan with the stale files that it deletes."""
        if not census.stale and not (self.remove_stale and census.is_cut):
            return plan
        going = f"{census.going()}, of {job.meshes.url}"
        question = f"confirm: {going} would be deleted for good: set `confirm` to start"
        unconfirmed = "" if self.confirm else question
        return plan.model_copy(update={"deletions": (going,), "unconfirmed": unconfirmed})

    def prepare(self) -> None:
        """Write nothing: manifests need no metadata."""

    def cells(self) -> Sequence[PrefixGroup]:
        """Groups of beginnings of labels."""
        return self._job().groups

    def run(self, cell: PrefixGroup) -> Work:
        """Write the manifest of every label of a group that has fragments."""
        from igneous_airflow.storage.overlap import Overlap

        job = self._job()
        census = _Census(job, _named(job, cell))
        if problems := list(self._stale(job, census)):
            raise InvalidParameter("; ".join(problems))
        if census.stale and not self.confirm:
            raise InvalidParameter(
                f"confirm: {census.going()}, of {job.meshes.url} would be deleted for good, and "
                "were not there when the run was planned: start a new run with `confirm`"
            )
        sizes: dict[str, int] = {}

        def write(label: int, cells: list[str]) -> None:
            sizes[job.meshes.manifest_name(label)] = job.meshes.write_manifest(label, cells)

        with Overlap(job.layer.overlap_width) as overlap:
            for label, cells in sorted(census.cells.items()):
                overlap.submit(partial(write, label, sorted(cells, key=job.index_of)))
        job.meshes.delete(census.stale)  # when no manifest names them any more
        return Work(
            chunks_written=len(sizes),
            bytes_written=sum(sizes.values()),
            files=sizes,
            folders=(job.meshes.directory,),
        )

    def finish(self, by: str, account: Account | None = None) -> Audit:
        """Check that every label with fragments has its manifest, and record what was done."""
        from igneous_airflow.storage.provenance import record_processing

        job = self._job()
        count, stale, cells = 0, list[str](), list[int]()

        def files_of(block: int) -> Iterator[FoundFile]:
            nonlocal count
            census = _Census(job, job.meshes.sizes_starting(job.groups[block].starts))
            count += len(census.manifests)
            if census.stale:
                stale.extend(census.stale)
                cells.append(block)
            sizes = census.manifests
            for label in sorted(census.cells):
                yield FoundFile(job.meshes.manifest_name(label), sizes.get(label))

        require_files(files_of, len(job.groups), job.meshes.url, account)
        if stale:
            raise AuditFailed(
                f"{job.meshes.url}: {counted(len(stale), 'file is', 'files are')} stale although "
                f"every task reported success: {', '.join(stale[:_NAMED_AT_MOST])}.",
                cells,
            )
        record_processing(job.layer.folder, self.provenance(), by, written={})
        return Audit(outputs={job.meshes.directory: count}, files="manifests")

    def _job(self) -> "_Job":
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.meshes import MeshFolder

        layer = Layer.open(self.layer)
        if layer.info.mesh_directory is None:
            raise InvalidParameter(f"{self.layer}/info names no mesh directory: run mesh first")
        meshes = MeshFolder(layer.folder, layer.info.mesh_directory)
        info = meshes.read_info()
        if info is None:
            raise InvalidParameter(
                f"{meshes.url}/info says neither mip nor chunk_size of the meshes: run mesh first"
            )
        on_disk = layer.folder.url.startswith("file://")
        groups = Prefixes(self.magnitude, _GROUPS_ON_DISK if on_disk else 10**self.magnitude)
        scale = layer.scale(info.mip)
        return _Job(layer, meshes, info, scale, groups, self.allow_incomplete)

    def _unfinished(self, job: "_Job") -> Iterator[str]:
        if job.undone and not self.allow_incomplete:
            yield (
                f"{_undone(job)}: {', '.join(sorted(job.undone)[:_NAMED_AT_MOST])}. "
                "Finish mesh first, or set allow_incomplete"
            )

    def _stale(self, job: "_Job", census: "_Census") -> Iterator[str]:
        if census.stale and not self.remove_stale:
            yield (
                f"{counted(len(census.stale), 'file')} in {job.meshes.url} "
                f"{'does' if len(census.stale) == 1 else 'do'} not belong to its meshes of "
                f"{job.info}, of the parts that its info names: "
                f"{', '.join(census.stale[:_NAMED_AT_MOST])}. Set remove_stale to delete them, or "
                "mesh the rest as well"
            )

    def _notes(self, job: "_Job", census: "_Census") -> Iterator[str]:
        if not job.info.parts:
            yield "the meshes were not made by `mesh`: whether all are there cannot be told"
        if job.unrecorded:
            yield f"{_undone(job)}: what is there of them is left out"
        elif job.undone:
            yield f"{_undone(job)}: they have fragments of earlier runs, which are taken"
        if not census.cells:
            yield "there are no fragments"
        if census.stale:
            count = counted(len(census.stale), "stale file is", "stale files are")
            yield f"{count} deleted: {census.stale[0]} ..."


def _undone(job: "_Job") -> str:
    have = "has" if len(job.undone) == 1 else "have"
    return f"{len(job.undone):,} of {counted(len(job.promised), 'block')} {have} not been meshed"


@dataclass(frozen=True)
class _Job:
    """The meshes of a layer, and how their labels are shared out."""

    layer: "Layer"
    meshes: "MeshFolder"
    info: "MeshInfo"
    scale: "Scale"
    groups: Prefixes
    allow_incomplete: bool
    _indices: dict[str, int] = field(default_factory=dict)

    @property
    def grid(self) -> Grid:
        return Grid(self.scale.bounds, self.info.cell)

    @cached_property
    def promised(self) -> frozenset[str]:
        """The cells of all parts, none where no parts are known."""
        parts = self.info.parts
        return frozenset(str(cell) for part in parts for cell in self.grid.overlapping(part))

    @cached_property
    def unrecorded(self) -> frozenset[str]:
        """Those that have not been meshed, or of which all labels are being meshed again."""
        return self.promised - self.meshes.recorded() if self.promised else frozenset()

    @cached_property
    def undone(self) -> frozenset[str]:
        """Those, and the ones of which a run that has not finished has yet to mesh some labels."""
        waiting = (
            str(cell)
            for begun in self.info.unfinished
            for cell, record in self._records(begun.part)
            if record is None or record.labels_of(begun.parameters) is None
        )
        return self.unrecorded | frozenset(waiting)

    def _records(self, part: BoundingBox) -> "Iterator[tuple[BoundingBox, Record | None]]":
        from igneous_airflow.storage.overlap import Overlap

        with Overlap(self.layer.overlap_width) as overlap:
            yield from overlap.map(self.meshes.readable_record, self.grid.overlapping(part))

    def index_of(self, cell: str) -> int:
        """The number of a cell of the meshes, -1 for any other text; the same few come often."""
        if cell not in self._indices:
            self._indices[cell] = -1
            with suppress(ValueError):
                box = BoundingBox.parse(cell)
                if self._in_parts(box):
                    self._indices[cell] = self.grid.index_of(box)
        return self._indices[cell]

    def _in_parts(self, cell: BoundingBox) -> bool:
        """Whether this is one of the cells asked for: fragments elsewhere may be of another mip."""
        parts = self.info.parts
        if not parts or self.info.has_others:
            return True
        return any(part.intersection(cell) for part in parts)

    def leaves_out(self, cell: str) -> bool:
        """Whether what a cell of the meshes has does not count yet: a task may be at work there."""
        # records are listed where the plan has let a cell without one pass, and only there
        return self.allow_incomplete and cell in self.unrecorded


class _Census:
    """What there is of the labels of some files: cells of fragments, manifests, and stale files.

    Stale are strays, which are fragments of cells that are none of the meshes', and manifests
    without fragments. `files` are names and bytes, of which the first `most` are looked at; where
    there are more, no manifest counts as stale, since its fragments may be among the others.
    """

    def __init__(
        self, job: _Job, files: Iterable[tuple[str, int]], most: int | None = None
    ) -> None:
        from igneous_airflow.storage.meshes import read_name

        self.cells: dict[int, list[str]] = {}
        self.manifests: dict[int, int] = {}  # stored bytes by label
        self.strays: list[str] = []
        self.is_cut = False
        stray_bytes = 0
        for seen, (name, size) in enumerate(files):
            if seen == most:
                self.is_cut = True
                break
            label, cell = read_name(name)
            if label == 0:
                continue
            if not cell:
                self.manifests[label] = size
            elif job.index_of(cell) < 0:
                self.strays.append(name)
                stray_bytes += size
            elif not job.leaves_out(cell):
                self.cells.setdefault(label, []).append(cell)
        lone = [] if self.is_cut else sorted(self.manifests.keys() - self.cells.keys())
        self.stale = [*self.strays, *(f"{label}:0" for label in lone)]
        self.stale_bytes = stray_bytes + sum(self.manifests[label] for label in lone)

    def going(self) -> str:
        """The stale files in words: how many there are, and their bytes where these are known."""
        strays, lone = len(self.strays), len(self.stale) - len(self.strays)
        size = f", {human_bytes(self.stale_bytes)}" if self.stale_bytes else ""
        if self.is_cut:
            least = f"at least {strays:,}" if strays else "an unknown number of"
            return f"{least} stale fragments{size}, and manifests of labels without fragments"
        manifests = f"{counted(lone, 'manifest')} of labels without fragments"
        kinds = ((strays, counted(strays, "stale fragment")), (lone, manifests))
        return " and ".join(words for count, words in kinds if count) + size


def _named(job: _Job, group: PrefixGroup) -> Iterator[tuple[str, int]]:
    """The files of a group's labels; a task needs no sizes, which are 0."""
    return ((name, 0) for name in job.meshes.names_starting(group.starts))
