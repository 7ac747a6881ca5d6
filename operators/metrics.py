"""What runs report through Airflow's own metrics, to StatsD or OpenTelemetry as Airflow is set up.

`docs/plans.md` names them. Used by `stage.py` and `sensor.py`.
"""

from datetime import timedelta

from airflow.sdk.observability.stats import Stats

from igneous_airflow.progress import Progress, Summary
from igneous_airflow.run import Run


def report_done(run: Run, summary: Summary) -> None:
    """A run was proved done, for the first time."""
    _count(run, "runs_done", 1)
    _count(run, "tasks_done", summary.tasks)
    _count(run, "attempts_failed", summary.failed_attempts)
    if summary.work is not None:
        _count(run, "voxels", summary.work.voxels)
        _count(run, "bytes_written", summary.work.bytes_written)
    took = timedelta(seconds=summary.seconds)
    Stats.timing(_name(run, "seconds"), took, tags=_tags(run))


def report_failed(run: Run, progress: Progress) -> None:
    """A run has ended without being done."""
    _count(run, "runs_failed", 1)
    _count(run, "tasks_failed", progress.left)
    _count(run, "attempts_failed", progress.failed_attempts)


def _count(run: Run, what: str, number: int) -> None:
    if number:
        Stats.incr(_name(run, what), number, tags=_tags(run))


def _name(run: Run, what: str) -> str:
    # the stage is a part of the name, since plain StatsD knows no tags
    return f"igneous.{run.stage}.{what}"


def _tags(run: Run) -> dict[str, str]:
    return {"dag_id": dag} if (dag := run.triggered_by.get("dag_id")) else {}
