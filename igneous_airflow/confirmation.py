"""What a run would replace, and whether it must be confirmed; used by the plans of stages.

Whatever is there and would be written over is counted in the plan. It must be confirmed unless the
run's own parameters made it, as the layer's provenance tells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from igneous_airflow.geometry.bbox import BoundingBox
from igneous_airflow.stage import Plan, Stage, human_bytes
from igneous_airflow.storage.existing import Existing, chunks_in
from igneous_airflow.storage.methods import same_method
from igneous_airflow.storage.provenance import made_by
from igneous_airflow.wording import counted

if TYPE_CHECKING:
    from igneous_airflow.storage.files import Folder
    from igneous_airflow.storage.info import Info, Scale
    from igneous_airflow.storage.trash import Trash


@dataclass(frozen=True, slots=True)
class Replaced:
    """Files of one folder that a run would write over, and the method of the run that made them.

    One of them is called by its `kind`, and `others` are what goes with them: " and 3 manifests".
    The method is empty where no run is known.
    """

    name: str
    found: Existing
    method: Mapping[str, Any]
    kind: str = "chunk file"
    others: str = ""

    def __str__(self) -> str:
        maker = self.method.get("task")
        made = f"made by {maker}" if maker else "of which no finished run is recorded"
        return f"{self.name}: {self.count(self.found)}, {made}"

    def count(self, found: Existing) -> str:
        """Say how many such files there are: "more than 1,204 chunk files, 3.4 MB"."""
        if not found.files and found.more:
            return f"{self.kind}s that could not be counted{self.others}"
        more = "more than " if found.more else ""
        size = f", {human_bytes(found.bytes)}" if found.bytes else ""
        return f"{more}{counted(found.files, self.kind)}{self.others}{size}"


def asking(
    plan: Plan, stage: Stage, subject: str, replaced: Sequence[Replaced], way_out: str = ""
) -> Plan:
    """The plan with what it replaces, unconfirmed as far as other parameters made that.

    `subject` says what they are together: "the voxels of mips 0 to 3". The stage has a field
    `confirm`. `way_out` is what else can be done than to confirm.
    """
    if not replaced:
        return plan
    changes: dict[str, Any] = {"replaces": tuple(map(str, replaced))}
    others = [item for item in replaced if not is_own(stage, item.method)]
    changes["made_by"] = tuple(dict(item.method) for item in others)
    if others and (question := _question(stage, subject, others)):
        changes["unconfirmed"] = question + way_out
    return plan.model_copy(update=changes)


def _question(stage: Stage, subject: str, others: Sequence[Replaced]) -> str:
    """What must be decided before others' files are replaced; empty when it has been."""
    parameters = stage.parameters()
    total = sum((item.found for item in others), Existing())
    listed = f"{others[0].count(total)} ({'; '.join(map(str, others))})"
    empty = parameters.get("skip_empty")
    if empty == "skip":  # which no confirmation makes right
        return (
            f"skip_empty: {subject} would stay as they are wherever the new ones are all "
            f"background: {listed}. Set `skip_empty` to delete or write to replace them"
        )
    if parameters["confirm"]:
        return ""
    fate = "replaced, or deleted where they are all background" if empty == "delete" else "replaced"
    return f"confirm: {subject} would be {fate}: {listed}. Set `confirm` to replace them"


def is_own(stage: Stage, method: Mapping[str, Any]) -> bool:
    """Whether a method is the stage's own, by its parameters.

    Those that it lacks, being that of an older version, count as left at their defaults.
    """
    fields = type(stage).model_json_schema()["properties"].items()
    defaults = {name: field["default"] for name, field in fields if "default" in field}
    return bool(method) and same_method({**defaults, **method}, stage.provenance())


def asking_for_voxels(
    plan: Plan,
    stage: Stage,
    folder: "Folder",
    info: "Info",
    written: Sequence[tuple["Scale", BoundingBox]],
) -> Plan:
    """The plan with the chunk files that it replaces in the boxes of scales; see `asking`."""
    found = [(scale, box, chunks_in(folder, scale, box)) for scale, box in written]
    there = [(scale, box, existing) for scale, box, existing in found if existing]
    if not there:
        return plan
    makers = made_by(folder, {scale.key: box for scale, box, _ in there})
    replaced = [Replaced(scale.key, existing, makers[scale.key]) for scale, _, existing in there]
    foreign = [scale for scale, _, _ in there if not is_own(stage, makers[scale.key])]
    interrupted = any(not makers[scale.key] for scale in foreign)
    way_out = ", or resume the run that wrote them if it was interrupted" if interrupted else ""
    return asking(
        plan, stage, f"the voxels of {_named(info, foreign)} of {folder.url}", replaced, way_out
    )


def _named(info: "Info", scales: "Sequence[Scale]") -> str:
    """Name scales by their mips, or by their keys where the info does not name them any more."""
    numbers = sorted(info.scales.index(scale) for scale in scales if scale in info.scales)
    if not numbers:
        return f"scale{'s' if len(scales) > 1 else ''} {', '.join(scale.key for scale in scales)}"
    return f"mip{'s' if len(numbers) > 1 else ''} {', '.join(_ranges(numbers))}"


def in_trash(trash: "Trash | None") -> str:
    """How much a run has moved to an entry of the trash, and its name; empty for nothing."""
    if trash is None or trash.read() is None:
        return ""
    sizes = [size for _, size in trash.files()]
    return f"{counted(len(sizes), 'file')}, {human_bytes(sum(sizes))}, as {trash.name}"


def _ranges(numbers: Sequence[int]) -> Iterator[str]:
    """Write numbers that follow each other as ranges: 0 to 3, 5."""
    start = 0
    for place in range(1, len(numbers) + 1):
        if place == len(numbers) or numbers[place] != numbers[place - 1] + 1:
            first, last = numbers[start], numbers[place - 1]
            yield f"{first}" if first == last else f"{first} to {last}"
            start = place
