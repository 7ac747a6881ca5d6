"""Operators for the steps of a stage; each calls one method of `Run`, and is used by `group.py`.

They hand each other nothing but the run's URL. All may be cleared and run again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, SkipMixin
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from igneous_airflow.chained_plans import plan_following
from igneous_airflow.errors import IgneousError, PlanRefused, RunFailed, TransientError
from igneous_airflow.forecast import Forecast
from igneous_airflow.operators.approval import approved, ask, foresee, why_to_approve
from igneous_airflow.operators.assets import announce
from igneous_airflow.operators.chain import Step
from igneous_airflow.operators.crew import crew, require_workable
from igneous_airflow.operators.form import Form, Skipped
from igneous_airflow.operators.links import NeuroglancerLink, dag_run_url
from igneous_airflow.operators.metrics import report_done
from igneous_airflow.operators.params import RunOptions, read_params, refuse_unknown
from igneous_airflow.operators.settings import load_run, queue_url, run_url
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.stage import Plan, Stage
from igneous_airflow.storage.provenance import author

if TYPE_CHECKING:
    from airflow.sdk import Context

#: Under this key PlanStage leaves the run's URL, beside its return value.
RUN_URL = "run_url"


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
    step could not work with. `after` are the runs of earlier steps, none where one was skipped.
    Returns `run_url` and the `plan`. Fails without retry, with every reason, when the plan is
    refused or an earlier run was not proved done; is skipped when the step is not to run.

    With `plan_only` all after it is skipped. A plan above the limits of the configuration waits
    here until a person approves it; the task fails when it is rejected.
    """

    template_fields: Sequence[str] = ("parameters", "after")
    inherits_from_skipmixin = True  # what is cleared after it is skipped again

    def __init__(
        self,
        *,
        form: Form,
        step: Step,
        group_id: str = "",
        parameters: Mapping[str, Any] | None = None,
        after: Sequence[str | None] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(multiple_outputs=True, **kwargs)
        self.form = form
        self.step = step
        self.group_id = group_id or step.name
        self.parameters = parameters
        self.after = after

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
            self._require_earlier(options)
            run, planned, later = self._launch(context, stages, options, values)
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
            plan = Forecast.of(run)
        self.log.info("%s approved the plan", by)
        return {RUN_URL: run.url, "plan": plan.model_dump(mode="json") if plan else None}

    def _require_earlier(self, options: RunOptions) -> None:
        """Check that earlier steps were proved done; when they were only planned, so is nothing."""
        for earlier in filter(None, self.after):
            if options.plan_only:
                raise AirflowSkipException(
                    "what this step works on is made by the steps before it, of which only the "
                    "plan was asked for"
                )
            Run.load(earlier).require_finished()

    def _run_url(self, context: "Context") -> str:
        dag_run = context["dag_run"]
        return run_url(dag_run.dag_id, dag_run.run_id, self.group_id)

    def _launch(
        self,
        context: "Context",
        stages: Mapping[str, Stage | Skipped],
        options: RunOptions,
        values: Mapping[str, Any],
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

        def plan_later(first: Stage, plan: Plan) -> None:
            if is_first:
                later.extend(plan_following(first, plan, list(running.values())))
                self._require_possible(dict(zip(running, later, strict=False)), options, values)

        try:
            run, plan = Run.launch(
                stage,
                url=url,
                queue=queue,
                own_queue=own_queue,
                batch=options.batch,
                plan_only=options.plan_only,
                by=by,
                triggered_by=triggered_by,
                once_planned=plan_later,
            )
        except (PlanRefused, AirflowFailException) as refused:
            error = refused
            if isinstance(refused, PlanRefused):
                error = self._refusal(refused, self.step, values)
            Run.refuse(stage, (str(error),), url=url, by=by, triggered_by=triggered_by)
            raise error from None
        return run, plan, later

    def _require_possible(
        self, later: Mapping[str, Plan], options: RunOptions, values: Mapping[str, Any]
    ) -> None:
        """Refuse at the start what a later step could not do on what the earlier ones will make."""
        for step in self.form.chain.steps:
            if plan := later.get(step.name):
                try:
                    plan.require_possible() if options.plan_only else plan.require_accepted()
                except PlanRefused as refused:
                    raise self._refusal(refused, step, values) from None

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


class RunOperator(BaseOperator):
    """A step of a run that PlanStage has recorded at `run_url`."""

    template_fields: Sequence[str] = (RUN_URL,)

    def __init__(self, *, run_url: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run_url = run_url


class MakeQueue(RunOperator):
    """Make the queue of a run; a setup task."""

    def execute(self, context: "Context") -> None:
        """Make the queue if it is missing and the run's own, and look into it."""
        with explained(context):
            run = load_run(self.run_url)
            queue = run.open_queue()
            queue.send([])  # makes it
            counts = queue.counts()
            queue.close()
        self.log.info("%s holds %s tasks", run.queue, f"{counts.waiting + counts.leased:,}")


class EnqueueStage(RunOperator):
    """Write what the tasks rely on, then send every task that has no receipt."""

    def execute(self, context: "Context") -> list[str]:
        """Return the workers that the tasks need, by name."""
        options = read_params(RunOptions, context.get("params") or {})
        with explained(context):
            run = load_run(self.run_url)
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
    """Prove that the run is complete, record provenance, and return the summary.

    DAGs that are scheduled on the layer are told by the outlets.
    """

    operator_extra_links = (NeuroglancerLink(),)

    def execute(self, context: "Context") -> dict[str, Any]:
        """Audit the output; fails without retry, naming what is missing."""
        with explained(context):
            run = load_run(self.run_url)
            was_finished = run.is_finished
            summary = run.finish()
        self.log.info("%s", summary.describe())
        if not was_finished:
            report_done(run, summary)
        announce(run, self.outlets, context)
        return summary.model_dump(mode="json")


class RemoveQueue(RunOperator):
    """Remove the queue of a finished run; a teardown task. Other queues are left to be resumed."""

    def execute(self, context: "Context") -> None:
        """Remove the queue, or say why it stays."""
        with explained(context):
            run = load_run(self.run_url)
            if not run.is_finished or not run.own_queue:
                reason = "it is not this run's own" if run.is_finished else "the run can be resumed"
                self.log.info("%s stays: %s", run.queue, reason)
                return
            queue = run.open_queue()
            queue.delete()
            queue.close()
        self.log.info("%s is removed", run.queue)
