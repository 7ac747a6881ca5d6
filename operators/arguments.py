"""What a worker's command line says of a run; for processes on the machine and for pods."""

from igneous_airflow.operators.params import RunOptions
from igneous_airflow.operators.settings import allowed, syncs_files
from igneous_airflow.run import Run


def worker_arguments(run: Run, options: RunOptions, processes: int, grace: float) -> list[str]:
    """The arguments of `igneous-airflow worker` that works until the run has no
    outstanding tasks.

    `grace` are the seconds that a task may go on after a request to stop. The worker may open what
    Airflow may.
    """
    prefixes = allowed().prefixes
    return [
        run.queue,
        *("--runs", run.runs_folder),
        *("--processes", str(processes)),
        *("--max-attempts", str(options.max_attempts)),
        *("--lease-seconds", str(options.lease_seconds)),
        *("--grace-seconds", str(grace)),
        "--until-done",
        *(() if syncs_files() else ("--no-sync",)),
        # a shared queue may hold the tasks of others for ever
        *(() if run.own_queue else ("--run", run.id)),
        *(("--allowed", ",".join(prefixes)) if prefixes else ()),
    ]
