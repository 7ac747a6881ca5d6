"""Plans of stages that come one after the other, before the first of them has begun."""

from collections.abc import Sequence

from igneous_airflow.errors import IgneousError
from igneous_airflow.stage import Plan, Stage
from igneous_airflow.storage.rehearsal import rehearsal


def plan_all(stages: Sequence[Stage]) -> list[Plan]:
    """Plan stages in their order, each as if the ones before it had prepared their layers.

    Nothing is written: what they would write is kept in memory, and forgotten. Ends with the first
    plan that is refused. Voxels, levels and meshes are not made, so what a later stage refuses for
    want of them is left out.
    """
    plans: list[Plan] = []
    stage: Stage | None = None
    with rehearsal():
        for asked in stages:
            if stage is not None:
                stage.prepare()
            try:
                stage = asked.model_copy().resolved()  # what it keeps is not what is there
                plan = stage.plan()
            except IgneousError as error:
                return [*plans, Plan(stage=asked.name, refusals=(str(error),))]
            plans.append(plan.as_later_step() if plans else plan)
            if plans[-1].refusals:
                break
    return plans
