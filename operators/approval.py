"""What a planned run will take, and whether a person has to approve it first; used by `stage.py`.

The options of `[igneous]` decide: `prices`, `approve_above_tasks` and `approve_above_cost`.
"""

from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.sdk import conf

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.forecast import Forecast, Prices, Rate
from igneous_airflow.operators.crew import place_of
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.settings import runs_url
from igneous_airflow.overview import Overview, layer_of
from igneous_airflow.run import Run
from igneous_airflow.stage import Plan

if TYPE_CHECKING:
    from airflow.sdk import Context

_EARLIER_RUNS = 5  # the newest ones: code and machines change
_APPROVE = "Approve"


def foresee(plan: Plan, run: Run, options: RunOptions) -> Forecast:
    """What a run takes that was just launched, judged by the latest runs of its stage."""
    prices = Prices.parse(_option("prices"), "[igneous] prices")
    earlier = islice(Overview(runs_url()).finished(run.stage), _EARLIER_RUNS)
    pods = place_of(options) == "kubernetes"
    workers = options.workers * (options.processes if pods else 1)
    return Forecast.make(plan, run, Rate.measure(earlier), workers, prices)


def why_to_approve(plan: Forecast) -> str:
    """Why a person has to look at a plan before it is carried out; empty when nobody has to.

    A cost that nobody knows has to be looked at as well. Raises InvalidParameter for limits that
    make no sense.
    """
    most_tasks, most_cost = _limit("approve_above_tasks"), _limit("approve_above_cost")
    if most_tasks is not None and plan.tasks > most_tasks:
        return f"it waits for approval, since its {plan.tasks:,} tasks are over {most_tasks:,.0f}"
    if most_cost is None:
        return ""
    if not plan.currency:
        raise InvalidParameter(
            "[igneous] approve_above_cost is set in Airflow's configuration, but no prices are"
        )
    if plan.cost is None:
        return "it waits for approval, since no run of this stage has told what it costs"
    if plan.cost > most_cost:
        limit = f"{most_cost:,g} {plan.currency}"
        return f"it waits for approval, since its cost, {plan.expected_cost}, is over {limit}"
    return ""


def ask(context: "Context", run: Run, plan: Forecast, why: str) -> None:
    """Let the Airflow task wait for a person; goes on in its `execute_complete`. Never returns."""
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    lines = plan.describe().splitlines()  # a list: Airflow joins the lines of blocks of code
    ApprovalOperator(
        task_id="approval",
        subject=f"{run.stage} of {layer_of(run)}: begin?",
        body="\n".join(
            [f"{why[0].upper()}{why[1:]}.", "", *(f"- {line.strip()}" for line in lines)]
        ),
    ).execute(context)


def approved(event: dict[str, Any]) -> tuple[bool, str]:
    """Whether a person has approved, and who that was."""
    user = event.get("responded_by_user") or {}
    return event.get("chosen_options") == [_APPROVE], user.get("name") or user.get("id") or "nobody"


def _option(name: str) -> str:
    return str(conf.get("igneous", name))


def _limit(name: str) -> float | None:
    text = _option(name).strip()
    try:
        limit = float(text) if text else None
    except ValueError:
        limit = -1
    if limit is not None and not limit >= 0:
        raise InvalidParameter(
            f"[igneous] {name} = {text!r} in Airflow's configuration is no number from 0 on"
        )
    return limit
