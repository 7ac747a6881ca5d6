"""Operators for the steps of a stage; each calls one method of `Run`, and is used by `group.py`.

They hand each other nothing but the run's URL. All may be cleared and run again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from igneous_airflow.chained_plans import plan_following
from igneous_airflow.errors import (
    IgneousError,
    PermanentError,
    PlanRefused,
    RunFailed,
    TransientError,
)
from igneous_airflow.forecast import Forecast
from igneous_airflow.operators.approval import approved, ask, foresee, why_to_approve
from igneous_airflow.operators.assets import announce
from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.crew import NOBODY, crew, require_workable
from igneous_airflow.operators.form import Form, Skipped
from igneous_airflow.operators.links import NeuroglancerLink, dag_run_url
from igneous_airflow.operators.params import RunOptions, read_params, refuse_unknown
from igneous_airflow.operators.proof import (
    RUN_URL,
    has_current_proof,
    planned_run,
    prove,
    run_to_keep,
)
from igneous_airflow.operators.settings import load_run, queue_url, run_url
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.stage import Plan, Stage
from igneous_airflow.storage.provenance import author

if TYPE_CHECKING:
    from airflow.sdk import Context


@contextmanager
def explained(context: Mapping[str, Any] = MappingProxyType({})) -> Iterator[None]:
    """Let Airflow retry what a retry may help, and fail at once with the reason what it cannot.

    The reason ends with a link to the DAG run of the context, for those who read it elsewhere.
    """
    try:
        yield
    except TransientError:
        raise
    except (IgneousError, AirflowFailException) as error:
        url = dag_run_url(context)
        link = f"\nDAG run: {url}" if url else ""
        raise AirflowFailException(f"{error}{link}") from None


class PlanStage(BaseOperator, SkipMixin):
    """Check the parameters of a chain, plan one step of it, and record the run.

    Writes nothing to the layer. The parameters are the DAG run's params, or those given here, which
    may be templates; those of all steps are checked, so that the first plan refuses what a late
    step could not work with. Returns `run_url` and the `plan`. Fails without retry, with every
    reason, when the plan is refused or an earlier step that was to run was not proved; is skipped
    when the step is not to run. A run that was proved starts from the beginning only when every
    task after this one is to run again too.

    With `plan_only` all after it is skipped. A plan above the limits of the configuration waits
    here until a person approves it; the task fails when it is rejected.
    """

    template_fields: Sequence[str] = ("parameters",)
    inherits_from_skipmixin = True  # what is cleared after it is skipped again

    def __init__(
        self,
        *,
        form: Form,
        step: Step,
        group_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=True, **kwargs)
        self.form = form
        self.step = step
        self.group_id = group_id or step.name
        self.parameters = parameters

    def execute(self, context: "Context") -> dict[str, Any]:
        """Launch the run, or take up the unfinished one of this DAG run."""
        values = context["params"] if self.parameters is None else self.parameters
        with explained(context):
            refuse_unknown(context["dag_run"].conf or {}, context["dag"].params)
            stages = self.form.read(values)
            stage = stages[self.step.name]
            if isinstance(stage, Skipped):
                raise AirflowSkipException(stage.reason)
            options = read_params(RunOptions, context["params"])
            earlier = self._require_earlier(context, stages, options)
            if kept := self._proved_before(context, stage):
                return kept
            run, planned, later = self._launch(context, stages, options, values, earlier)
            plan = foresee(planned, run, options)
            run.write_plan(plan)
            self.log.info("%s", plan.describe())
            for following in later:
                self.log.info("When that is done:\n%s", following.describe())
            self.log.info("The run is recorded in %s", run.url)
            result = {RUN_URL: run.url, "plan": plan.model_dump(mode="json")}
            if options.plan_only:
                self._end(context, result)
            elif run.state is LaunchState.PLANNED and (why := why_to_approve(plan)):
                run = run.require_approval(why)
                self._push(context, result)
                ask(context, run, plan, why)
        return result

    def execute_complete(self, context: "Context", event: dict[str, Any]) -> dict[str, Any]:
        """Go on when a person has answered."""
        is_approved, by = approved(event)
        with explained(context):
            run = load_run(self._run_url(context))
            if not is_approved:
                run.cancel(by, f"{by} rejected its plan")
                raise RunFailed(f"{by} rejected the plan: nothing was written to the layer")
            run.approve(by)
        self.log.info("%s approved the plan", by)
        return _result(run)

    def _require_earlier(
        self, context: "Context", stages: Mapping[str, Stage | Skipped], options: RunOptions
    ) -> list[Run]:
        """The runs of the earlier steps, all of them proved.

        When only the plan is asked for, what comes after another step is skipped.
        """
        names = [step.name for step in self.form.chain.steps]
        before = names[: names.index(self.step.name)]
        needed = [name for name in before if isinstance(stages[name], Stage)]
        if needed and options.plan_only:
            raise AirflowSkipException(
                "what this step works on is made by the steps before it, of which only the plan "
                "was asked for"
            )
        earlier = [planned_run(context, name) for name in needed]
        for run in earlier:
            run.require_finished()
        return earlier

    def _proved_before(self, context: "Context", stage: Stage) -> dict[str, Any] | None:
        """What this task returned of a run that is proved and stays so; None for any other."""
        after = self.get_flat_relative_ids(upstream=False)
        run = run_to_keep(context, self._run_url(context), after)
        if run is None:
            return None
        run.require_same(stage)
        self.log.info(
            "The run %s was proved before and is left as it is. To do it again from the "
            "beginning, clear all tasks of the DAG run",
            run.url,
        )
        return _result(run)

    def _run_url(self, context: "Context") -> str:
        dag_run = context["dag_run"]
        return run_url(dag_run.dag_id, dag_run.run_id, self.group_id)

    def _launch(
        self,
        context: "Context",
        stages: Mapping[str, Stage | Skipped],
        options: RunOptions,
        values: Mapping[str, Any],
        earlier: Sequence[Run],
    ) -> tuple[Run, Plan, list[Plan]]:
        """Launch the run, or refuse in the words of the form.

        Returns its plan, and where it is the first step that runs, those of the later ones.
        """
        dag_run, url = context["dag_run"], self._run_url(context)
        running = {name: stage for name, stage in stages.items() if isinstance(stage, Stage)}
        is_first = next(iter(running)) == self.step.name
        stage = running.pop(self.step.name)
        queue, own_queue = queue_url(url, options.queue)
        require_workable(options, stage, (url, queue))
        by = dag_run.triggering_user_name or author()
        triggered_by = {
            "dag_id": dag_run.dag_id,
            "dag_run_id": dag_run.run_id,
            "group_id": self.group_id,
        }
        later: list[Plan] = []
        trusted = self._methods(stage, running, earlier)

        def plan_later(first: Stage, plan: Plan) -> None:
            if is_first:
                following = plan_following(first, plan, list(running.values()))
                later.extend(self._accepted(running, following, options, values, trusted))

        try:
            run, plan = Run.launch(
                stage,
                url=url,
                queue=queue,
                own_queue=own_queue,
                batch=options.batch,
                plan_only=options.plan_only,
                trusted=trusted,
                by=by,
                triggered_by=triggered_by,
                once_planned=plan_later,
            )
        except (PermanentError, AirflowFailException) as refused:
            error: Exception = refused
            if isinstance(refused, PlanRefused):
                error = self._refusal(refused, self.step, values)
            Run.refuse(stage, (str(error),), url=url, by=by, triggered_by=triggered_by)
            raise error from None
        return run, plan, later

    def _methods(
        self, stage: Stage, others: Mapping[str, Stage], earlier: Sequence[Run]
    ) -> list[dict[str, Any]]:
        """The methods of the steps of this chain, which may replace what the others have made.

        Earlier steps are as their runs were launched, the others as they were asked for.
        """
        names = [step.name for step in self.form.chain.steps]
        following = names[names.index(self.step.name) + 1 :]
        later = [others[name] for name in following if name in others]
        before = [run.make_stage() for run in earlier]
        return [step.provenance() for step in (*before, stage, *later)]

    def _accepted(
        self,
        running: Mapping[str, Stage],
        following: Sequence[Plan],
        options: RunOptions,
        values: Mapping[str, Any],
        trusted: Sequence[Mapping[str, Any]],
    ) -> list[Plan]:
        """Refuse at the start what a later step could not do on what the earlier ones will make."""
        plans = []
        steps = {step.name: step for step in self.form.chain.steps}
        for name, plan in zip(running, following, strict=False):
            try:
                if options.plan_only:
                    plans.append(plan.require_possible())
                else:
                    plans.append(plan.require_accepted(trusted=trusted))
            except PlanRefused as refused:
                raise self._refusal(refused, steps[name], values) from None
        return plans

    def _refusal(
        self, refused: PlanRefused, step: Step, values: Mapping[str, Any]
    ) -> AirflowFailException:
        """The refusal of a step's plan in the words of the form."""
        reasons = [self.form.in_its_words(step, reason, values) for reason in refused.refusals]
        return AirflowFailException(str(PlanRefused(refused.stage, reasons)))

    def _end(self, context: "Context", result: dict[str, Any]) -> None:
        """Skip all that comes after; never returns."""
        self.log.info("Only the plan was asked for: nothing is written to the layer")
        self._push(context, result)
        following = [task for task in self.get_direct_relatives() if not task.is_teardown]
        self.skip(context["ti"], following)

    def _push(self, context: "Context", result: dict[str, Any]) -> None:
        """Hand on what `execute` would return if it came to its end."""
        for key, value in (*result.items(), ("return_value", result)):
            context["ti"].xcom_push(key=key, value=value)


def _result(run: Run) -> dict[str, Any]:
    """What PlanStage returns of a run that was planned before."""
    plan = Forecast.of(run)
    return {RUN_URL: run.url, "plan": plan.model_dump(mode="json") if plan else None}


class RunOperator(BaseOperator):
    """A step of a run that PlanStage has recorded at `run_url`."""

    template_fields: Sequence[str] = (RUN_URL,)

    def __init__(self, *, run_url: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_url = run_url


class EnqueueStage(RunOperator):
    """Write what the tasks rely on, then send every task that has no receipt.

    Makes the queue when it is the run's own. A run that is proved is left as it is.
    """

    def execute(self, context: "Context") -> list[str]:
        """Return the workers that the tasks need, by name."""
        options = read_params(RunOptions, context.get("params") or {})
        with explained(context):
            run = load_run(self.run_url)
            if run.is_finished:
                self.log.info("The run is proved: nothing is left to send")
                return [NOBODY]
            if run.state is LaunchState.CANCELLED and run.was_launched:
                # this task has sent its tasks before: it runs again only when a person clears it
                run = run.go_on(run.by)
            run.prepare()
            sent = run.enqueue()
            workers = crew(options, sent)
        earlier = run.planned - sent
        self.log.info(
            "Sent %s of %s tasks to %s%s",
            f"{sent:,}",
            f"{run.planned:,}",
            run.queue,
            f"; {earlier:,} were done before" if earlier else "",
        )
        return workers


class FinishStage(RunOperator):
    """Prove that the run is complete, remove its queue, and return the summary.

    `proved_by` is a task that has waited for the run and proves it, as `StageProvedSensor` does:
    what it has proved since tasks of the DAG run were last cleared is not audited a second time.
    DAGs that are scheduled on the layer are told by the outlets.
    """

    operator_extra_links = (NeuroglancerLink(),)

    def __init__(self, *, run_url: str, proved_by: str = "", **kwargs: Any) -> None:
        super().__init__(run_url=run_url, **kwargs)
        self.proved_by = proved_by

    def execute(self, context: "Context") -> dict[str, Any]:
        """Audit the output; fails without retry, naming what is missing."""
        with explained(context):
            run = load_run(self.run_url)
            known = run.summary() if has_current_proof(context, self.proved_by) else None
            summary = known or prove(run)
            self.log.info("%s", summary.describe())
            announce(run, self.outlets, context)
        self._remove_queue(run)
        return summary.model_dump(mode="json")

    def _remove_queue(self, run: Run) -> None:
        """Remove a proved run's own queue, which may be gone already; never fails the task."""
        if not run.own_queue:
            return
        try:
            with closing(run.open_queue()) as queue:
                queue.delete()
        except IgneousError as error:
            self.log.warning("%s stays: %s", run.queue, error)
        else:
            self.log.info("%s is removed", run.queue)
