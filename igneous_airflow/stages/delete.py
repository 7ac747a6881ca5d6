"""Delete: the chunk files of some mips of a layer, and the mips themselves from its info."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import lcm
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

from pydantic import AfterValidator, Field

from igneous_airflow.errors import AuditFailed, IgneousError, InvalidParameter
from igneous_airflow.field_values import shown
from igneous_airflow.fields import (
    WHAT,
    WHERE,
    Bounds,
    Confirm,
    KeepDeleted,
    LayerUrl,
    Mip,
    TrashEntry,
    section,
)
from igneous_airflow.geometry.bbox import BoundingBox, Vec3
from igneous_airflow.geometry.grid import Grid
from igneous_airflow.geometry.scale_blocks import Block, BlocksOfScales
from igneous_airflow.proof import Account
from igneous_airflow.stage import Audit, Plan, Stage, Work, human_bytes
from igneous_airflow.storage.folder_names import folder_problem

if TYPE_CHECKING:
    from igneous_airflow.storage.info import Scale
    from igneous_airflow.storage.layer import Layer
    from igneous_airflow.storage.trash import Entry, Trash

_CHUNKS_ON_EDGE = 16  # of the block that a task deletes
_NAMED_AT_MOST = 10


def _keys_text(text: str | None) -> str | None:
    if text is None:
        return None
    keys = [key.strip() for key in text.split(",")]
    for key in keys:
        if problem := folder_problem(key):
            raise ValueError(f"{shown(key)} {problem}")
    return ",".join(keys)


class Delete(Stage):
    """Delete mips of a layer: their chunk files, and their entries in the info.

    On a disk they can be kept in the layer's trash. Meshes, skeletons, other mips and files that
    are no chunks stay. With bounds, only the chunks inside go, and the info stays. Tasks are blocks
    of chunks.
    """

    name: ClassVar[str] = "delete"

    layer: LayerUrl
    mip: Annotated[
        Mip,
        Field(
            description="Finest mip to delete: 0 is the finest there is, -1 the coarsest.",
        ),
    ] = 0
    num_mips: Annotated[
        int,
        Field(
            ge=1,
            le=65,
            title="Number of mips",
            description="How many mips to delete: the chosen one, and coarser ones after it.",
            json_schema_extra=section(WHAT, first=True),
        ),
    ] = 1
    bounds: Annotated[
        Bounds,
        Field(
            description="Delete a part only: a box in voxels of the chosen mip, made of whole "
            "chunks of every mip to delete, as x0-x1_y0-y1_z0-z1. Empty means all.",
        ),
    ] = None
    scales: Annotated[
        str | None,
        AfterValidator(_keys_text),
        Field(
            title="Scales",
            description="Keys of the scales to delete, as 8_8_40,16_16_40, finest first, in place "
            "of `mip` and `num_mips`. A run notes them here, since mips are renumbered when "
            "scales go.",
            json_schema_extra=section(WHERE),
        ),
    ] = None
    confirm: Annotated[
        Confirm,
        Field(
            title="Yes, delete",
            description="Confirm that the files may go. Nothing brings them back, unless they are "
            "kept in the trash.",
            json_schema_extra=section(WHAT, first=True, flag="--yes"),
        ),
    ] = False
    keep_deleted: KeepDeleted = True
    trash_entry: TrashEntry = None

    @property
    def output(self) -> str:
        """The layer."""
        return self.layer

    def resolved(self) -> Self:
        """Note the keys of the scales that the mips are now, and where they will be kept.

        Bounds of everything are none.
        """
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.trash import new_entry_name

        scales = self._chosen(Layer.open(self.layer))
        everything = self.bounds == str(scales[0].bounds)
        return self.model_copy(
            update={
                "scales": ",".join(scale.key for scale in scales),
                "bounds": None if everything else self.bounds,
                "trash_entry": self.trash_entry or new_entry_name(),
            }
        )

    def plan(self) -> Plan:
        """List what is there to delete, and name every reason to refuse."""
        from igneous_airflow.storage.layer import Layer

        try:
            layer = Layer.open(self.layer)
            if self.launch.begun and not self._remaining(layer):
                note = "the mips have left the info: only the record of it is missing"
                return Plan(stage=self.name, writes_to=layer.folder.url, notes=(note,))
            scales = self._chosen(layer)
            refusals = list(self._refusals(scales))
            if not refusals:
                if trash := self._trash(layer):
                    trash.require_free(self.launch.id)
                layer.folder.check_writable(scale.key for scale in scales)
        except IgneousError as error:
            return Plan(stage=self.name, refusals=(str(error),))
        if refusals:
            return Plan(stage=self.name, refusals=tuple(refusals))
        blocks = self._blocks(scales)
        files = stored = 0
        lines = []
        for scale in scales:
            sizes = [size for _, size in self._files(layer, scale)]
            lines.append(f"{scale.key}: {len(sizes):,} chunk files, {human_bytes(sum(sizes))}")
            files, stored = files + len(sizes), stored + sum(sizes)
        question = (
            f"confirm: {files:,} chunk files, {human_bytes(stored)}, of {self.layer} would be "
            f"{self._fate(layer)} ({', '.join(scale.key for scale in scales)}): set `confirm` to "
            "start"
        )
        return Plan(
            stage=self.name,
            writes_to=layer.folder.url,
            tasks=len(blocks),
            grid=f"blocks of at most {_CHUNKS_ON_EDGE**3:,} chunks",
            deletions=tuple(lines),
            notes=tuple(self._notes(layer, scales)),
            unconfirmed="" if self.confirm else question,
        )

    def prepare(self) -> None:
        """Say in the trash what will come; the info names the scales until their files are gone."""
        from igneous_airflow.storage.layer import Layer

        self._require_confirmed()
        self._begin_entry(Layer.open(self.layer))

    def _begin_entry(self, layer: "Layer") -> None:
        """Say in the trash what the files are, unless only the record of the run is missing."""
        trash = self._trash(layer)
        if trash is not None and self._remaining(layer):
            trash.begin(self._entry(layer, trash))

    def _entry(self, layer: "Layer", trash: "Trash") -> "Entry":
        """What the trash says of the files."""
        from igneous_airflow.storage.trash import Entry

        scales = self._chosen(layer)
        keys = [scale.key for scale in scales]
        regions = {scale.key: str(self._region(scales[0], scale)) for scale in scales}
        return Entry(
            name=trash.name,
            what=f"chunks of {', '.join(keys)}" + (f", of {self.bounds}" if self.bounds else ""),
            stage=self.name,
            run=self.launch.run,
            launch=self.launch.id,
            folders=tuple(keys),
            parts=regions if self.bounds else {},
            scales=() if self.bounds else layer.info.entries_of(keys),
        )

    def cells(self) -> Sequence[Block]:
        """Blocks of chunks of every scale to delete."""
        from igneous_airflow.storage.layer import Layer

        return self._blocks(self._chosen(Layer.open(self.layer)))

    def run(self, cell: Block) -> Work:
        """Delete or move the chunk files of a block, in whatever compression they are."""
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.overlap import Overlap

        self._require_confirmed()
        layer = Layer.open(self.layer)
        scale = next((s for s in layer.info.scales if s.key == cell.key), None)
        if scale is None:  # the run has finished already
            return Work()
        remove = self._remover(layer)
        with Overlap(layer.overlap_width) as overlap:
            for chunk in scale.chunks.overlapping(cell.box):
                overlap.submit(partial(remove, f"{scale.key}/{chunk}"))
        trash = self._trash(layer)
        if trash is not None and trash.holds(scale.key):
            self._begin_entry(layer)  # it may have been restored or emptied since
        return Work(folders=(scale.key, *(trash.folders_of(scale.key) if trash else ())))

    def finish(self, by: str, account: Account | None = None) -> Audit:  # noqa: ARG002
        """Check that the files are gone, remove the scales from the info, record what was done.

        Files of chunks that are not on the scale's grid, left by an earlier chunk size, go here.
        """
        from igneous_airflow.storage.info import remove_scales
        from igneous_airflow.storage.layer import Layer
        from igneous_airflow.storage.overlap import Overlap
        from igneous_airflow.storage.provenance import record_processing

        self._require_confirmed()
        layer = Layer.open(self.layer)
        keys, scales = (self.scales or "").split(","), self._remaining(layer)
        left, strays = self._left(layer, scales)
        if left:
            blocks = self._blocks(scales)
            raise AuditFailed(
                f"{len(left):,} chunks of {self.layer} are still there although every task "
                f"reported success: {', '.join(map(str, left[:_NAMED_AT_MOST]))}.",
                sorted({blocks.number_of(chunk) for chunk in left}),
            )
        with Overlap(layer.overlap_width) as overlap:
            for stray in strays:
                overlap.submit(partial(self._remover(layer), str(stray)))
        if strays:
            self._begin_entry(layer)
        if self.bounds is None:
            remove_scales(layer.folder, keys)
        record_processing(layer.folder, self.provenance(), by, written={})
        return Audit(outputs=dict.fromkeys(keys, 0), moved=self._moved(layer, by))

    def _trash(self, layer: "Layer") -> "Trash | None":
        """Where the files are kept; None where they are not."""
        from igneous_airflow.storage.trash import Trash

        if not self.keep_deleted or self.trash_entry is None or not layer.folder.renames:
            return None
        return Trash(layer.folder, self.trash_entry)

    def _remover(self, layer: "Layer") -> "Callable[[str], None]":
        """What is done with a file of the layer."""
        trash = self._trash(layer)
        return layer.folder.delete if trash is None else trash.put

    def _moved(self, layer: "Layer", by: str) -> str:
        """Say in the trash that all is there, and return what that is; empty without a trash."""
        from igneous_airflow.confirmation import in_trash

        trash = self._trash(layer)
        if trash:
            trash.complete(by)
        return in_trash(trash)

    def _fate(self, layer: "Layer") -> str:
        """What becomes of the files."""
        if self.keep_deleted and layer.folder.renames:
            return "moved to the layer's trash"
        return "deleted for good"

    def _require_confirmed(self) -> None:
        if not self.confirm:
            raise InvalidParameter("confirm: nothing is deleted before it is confirmed")
        if self.scales is None:
            raise InvalidParameter("scales: work on the stage that `resolved` gives")

    def _remaining(self, layer: "Layer") -> "list[Scale]":
        """Those of the scales to delete that the info still names, finest first."""
        keys = (self.scales or "").split(",")
        return [scale for scale in layer.info.scales if scale.key in keys]

    def _chosen(self, layer: "Layer") -> "tuple[Scale, ...]":
        """The scales to delete, finest first; raises InvalidParameter for one that is not there."""
        present = layer.info.scales
        if self.scales is None:
            first = present.index(layer.scale(self.mip))
            return present[first : first + self.num_mips]
        by_key = {scale.key: scale for scale in present}
        keys = self.scales.split(",")
        if absent := [key for key in keys if key not in by_key]:
            raise InvalidParameter(
                f"{self.layer} has no scale {', '.join(absent)}: it may have been deleted already"
            )
        return tuple(by_key[key] for key in keys)

    def _region(self, finest: "Scale", scale: "Scale") -> BoundingBox:
        """The part of a scale to delete; raises InvalidParameter when bounds do not fit scales."""
        if self.bounds is None:
            return scale.bounds
        box, ratio = BoundingBox.parse(self.bounds), self._ratio(finest, scale)
        relative = box.translated(finest.voxel_offset * -1).downsampled(ratio)
        return relative.translated(scale.voxel_offset).intersection(scale.bounds)

    def _ratio(self, finest: "Scale", scale: "Scale") -> Vec3:
        ratio = scale.ratio_to(finest)
        if ratio is None:
            raise InvalidParameter(
                f"bounds: scale {scale.key} is no whole multiple of {finest.key}: delete the part "
                "mip by mip"
            )
        return ratio

    def _blocks(self, scales: "Sequence[Scale]") -> BlocksOfScales:
        return BlocksOfScales(
            tuple(
                (
                    scale.key,
                    Grid(self._region(scales[0], scale), scale.chunk_size * _CHUNKS_ON_EDGE),
                )
                for scale in scales
            )
        )

    def _files(self, layer: "Layer", scale: "Scale") -> Iterator[tuple[BoundingBox, int]]:
        """The chunk files to delete, listed rather than computed: box and stored bytes of each."""
        region = None if self.bounds is None else self._region(self._chosen(layer)[0], scale)
        for name, size in layer.folder.sizes(scale.key):
            try:
                box = BoundingBox.parse(name)
            except InvalidParameter:  # a file of somebody else's
                continue
            if box and (region is None or region.contains(box)):
                yield box, size

    def _left(self, layer: "Layer", scales: "Sequence[Scale]") -> tuple[list[Block], list[Block]]:
        """The chunk files that are left: those on the scale's grid, and others."""
        left: dict[Block, None] = {}
        strays: dict[Block, None] = {}
        for scale in scales:
            grid = scale.chunks
            for box, _ in self._files(layer, scale):
                on_grid = next(grid.overlapping(box), None) == box
                (left if on_grid else strays)[Block(scale.key, box)] = None
        return list(left), list(strays)

    def _refusals(self, scales: "Sequence[Scale]") -> Iterator[str]:
        finest = scales[0]
        for scale in scales:
            if "," in scale.key:
                yield f"scale {scale.key!r} cannot be named, for its comma"
            if scale.sharded:
                yield f"scale {scale.key} is sharded; only the chunks of unsharded ones are deleted"
        if self.bounds is None:
            return
        box, volume = BoundingBox.parse(self.bounds), finest.bounds
        if not volume.contains(box):
            yield f"bounds: {box} reaches out of the volume, which is {volume}"
            return
        spans = [scale.chunk_size * self._ratio(finest, scale) for scale in scales]
        unit = Vec3(*(lcm(*(span[axis] for span in spans)) for axis in range(3)))
        if not Grid(volume, unit).is_aligned(box):
            aligned = box.expanded_to_grid(unit, volume.min).intersection(volume)
            yield (
                f"bounds: {box} holds only parts of chunks, which come in blocks of {unit} voxels "
                f"counted from {volume.min} with all mips: use {aligned}, or fewer mips"
            )

    def _notes(self, layer: "Layer", scales: "Sequence[Scale]") -> Iterator[str]:
        if self.scales is None and len(scales) < self.num_mips:
            yield f"{len(scales)} of {self.num_mips} mips are deleted: there are no more"
        if self.keep_deleted and layer.folder.renames:
            yield "the files are kept in the trash of the layer, where they take as much space"
        elif self.keep_deleted:
            yield "a bucket has no trash: what goes is gone for good, unless it keeps versions"
        if self.bounds is not None:
            yield "the info keeps these mips, since only a part of them is deleted"
            return
        kept = [scale.key for scale in layer.info.scales if scale not in scales]
        if not kept:
            yield "no mip is left: the info stays, with an empty list of scales"
        elif scales[0] == layer.info.scales[0]:
            yield f"mips are renumbered: {kept[0]} becomes mip 0"
