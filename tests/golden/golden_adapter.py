"""What the golden record needs of the library: the only file here that imports it.

When names of the library change, this file follows and the record stays. The keys of what is given
back here are the record's own.
"""

from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

from golden_case import Step

from igneous_airflow.chained_plans import plan_following
from igneous_airflow.errors import IgneousError
from igneous_airflow.stage import Plan, Stage, Work
from igneous_airflow.stages import registered_stages, stage_class

Facts = dict[str, Any]


def stages() -> set[str]:
    """The names of all stages."""
    return set(registered_stages())


def plan_ahead(steps: Sequence[Step]) -> list[Facts]:
    """The plans of the steps after the first, made before that one has run, as chains do."""
    first, *following = map(_stage, steps)
    first = first.resolved()
    return [_plan_facts(plan) for plan in plan_following(first, first.plan(), following)]


def run_step(step: Step, order: Random | None) -> Facts:
    """Do all of a stage, its blocks in their order or in a random one; a refused plan ends it."""
    stage, plan = _planned(_stage(step))
    facts: Facts = {"stage": step.stage, "plan": _plan_facts(plan)}
    if plan.refusals or plan.unconfirmed:
        return facts
    stage.prepare()
    blocks = list(stage.cells())
    facts["blocks"] = [str(block) for block in blocks]
    numbers = list(range(len(blocks)))
    if order is not None:
        order.shuffle(numbers)
    done = {number: stage.run(blocks[number]) for number in numbers}
    facts["work"] = _work_facts(done[number] for number in range(len(blocks)))
    audit = stage.finish("golden@example.org")
    facts["audit"] = {"files": audit.outputs, "absent": audit.absent}
    return facts


def _planned(stage: Stage) -> tuple[Stage, Plan]:
    """The stage as it is launched, with its plan; what it cannot be launched for is refused."""
    try:
        stage = stage.resolved()
    except IgneousError as error:
        return stage, Plan(stage=stage.name, refusals=(str(error),))
    return stage, stage.plan()


def _stage(step: Step) -> Stage:
    """The stage of a step, which may replace what is there, and keeps nothing in a trash."""
    kind = stage_class(step.stage)
    given = dict(step.parameters)
    allowed = {"keep_deleted": False} | ({} if step.stage == "delete" else {"confirm": True})
    for name, value in allowed.items():
        if name in kind.model_fields:
            given.setdefault(name, value)
    return kind.model_validate(given)


def _plan_facts(plan: Plan) -> Facts:
    return {
        "tasks": plan.tasks,
        "voxels": plan.voxels,
        "bytes_read": plan.bytes_read,
        "bytes_written": plan.bytes_written,
        "memory": plan.memory,
        "memory_target": plan.memory_target,
        "scratch": plan.scratch,
        "writes_to": plan.writes_to,
        "texts": {
            "grid": [plan.grid] if plan.grid else [],
            "makes": list(plan.outputs),
            "notes": list(plan.notes),
            "deletes": list(plan.deletions),
            "refused": list(plan.refusals),
            "unconfirmed": [plan.unconfirmed] if plan.unconfirmed else [],
        },
    }


def _work_facts(done: Iterable[Work]) -> Facts:
    """The sum of what the blocks report, and the files that each left out."""
    total = Work()
    left_out = []
    for work in done:
        total += work
        left_out.append(sorted(work.left_out))
    return {
        "voxels": total.voxels,
        "chunks_written": total.chunks_written,
        "chunks_skipped": total.chunks_skipped,
        "bytes_written": total.bytes_written,
        "counts": sorted(total.counts.values()),
        "left_out": left_out if any(left_out) else [],
    }
