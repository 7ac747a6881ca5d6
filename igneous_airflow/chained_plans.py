"""Plans of stages that come one after the other, before the first of them has begun."""

from collections.abc import Sequence

from igneous_airflow.errors import PermanentError
from igneous_airflow.stage import Plan, Stage
from igneous_airflow.storage.rehearsal import rehearsal


def plan_following(first: Stage, plan: Plan, following: Sequence[Stage]) -> list[Plan]:
    """Plan the stages after one whose own plan is accepted, as if each had been prepared in turn.

    `first` is as its run goes by it, `following` as asked for. Nothing is written: what `prepare`
    would write is kept in memory, and forgotten. Ends with the first plan that is refused. Voxels,
    levels and meshes are not made, so what a plan refuses for want of them (`Plan.awaited`) is left
    out.
    """
    plans: list[Plan] = []
    earlier = first.model_copy()  # of its own, as it keeps what it finds
    with rehearsal():
        for asked in following:
            try:
                if not (plan.unconfirmed and plan.deletions):  # which it would insist on
                    earlier.accepted().prepare()
                earlier = asked.model_copy().resolved()
                plan = earlier.plan().as_later_step()
            except PermanentError as error:
                plan = Plan(stage=asked.name, refusals=(str(error),))
            plans.append(plan)
            if plan.refusals:
                break
    return plans
