"""The commands that deployments run: a worker, and where the DAG files are."""

import sys
import time
from pathlib import Path

import click

from igneous_airflow.cli.addresses import queue_url
from igneous_airflow.cli.allowed import ALLOWED, keep_out_of, limit_to
from igneous_airflow.cli.runs import runs_option, sync_option
from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.protocol import LONGEST_LEASE, open_queue
from igneous_airflow.worker.loop import Settled, WorkerOptions
from igneous_airflow.worker.pool import WorkerPool, killed_text

_DEFAULTS = WorkerOptions()


@click.command
@click.argument("queue", callback=queue_url)
@click.option(
    "--processes", type=click.IntRange(1), default=1, show_default=True, help="Worker processes."
)
@click.option("--until-done", is_flag=True, help="Stop when no task is left to wait for.")
@click.option(
    "--run",
    metavar="RUN",
    help="With --until-done: also stop once this run, by its name in the runs folder, has no "
    "outstanding tasks, though the queue holds tasks of others.",
)
@click.option(
    "--allowed",
    metavar="PREFIX,PREFIX,...",
    help=f"Addresses below which tasks may read and write, as {ALLOWED} in the environment; where "
    "both are given, both hold.",
)
@click.option(
    "--stopped-code",
    type=click.IntRange(0, 255),
    default=0,
    show_default=True,
    help="Exit code if stopped before the queue was drained, so that a supervisor such as "
    "Kubernetes restarts the worker.",
)
@click.option(
    "--lease-seconds",
    type=click.FloatRange(1, LONGEST_LEASE),
    default=_DEFAULTS.lease_seconds,
    show_default=True,
    help="How long a task stays hidden from others when a worker falls silent.",
)
@click.option(
    "--max-attempts",
    type=click.IntRange(1),
    default=_DEFAULTS.max_attempts,
    show_default=True,
    help="Attempts at a task before it is given up.",
)
@click.option(
    "--grace-seconds",
    type=click.FloatRange(0),
    default=_DEFAULTS.grace_seconds,
    show_default=True,
    help="After a request to stop, how long a running task may go on before it is given back.",
)
@click.option(
    "--alive-file",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="IGNEOUS_AIRFLOW_ALIVE_FILE",
    help="A file to touch all the time, for probes.",
)
@sync_option
@click.option("--stop-with-parent", type=int, metavar="PID", hidden=True)
@click.version_option(package_name="igneous-airflow")
def worker(
    queue: str,
    runs: str,
    processes: int,
    until_done: bool,
    run: str | None,
    allowed: str | None,
    stopped_code: int,
    lease_seconds: float,
    max_attempts: int,
    grace_seconds: float,
    alive_file: Path | None,
    sync: bool,
    stop_with_parent: int | None,
) -> None:
    """Work on the tasks of QUEUE, one line of log for each.

    A task names a run, and is worked on if the run is recorded in the runs folder as launched.
    Anything else in the queue goes to its dead letters. A message of another runs folder ends the
    worker with exit code 1, and goes back to the queue.

    SIGTERM lets the running tasks finish; a second one gives them back at once. The exit code is 1
    when tasks were given up, else 0: processes that signals killed are replaced, and counted at the
    end, as are messages that were refused.
    """
    limit_to(allowed, "--allowed")
    keep_out_of(runs)
    _require_queue(queue, until_done)
    options = WorkerOptions(
        lease_seconds=lease_seconds,
        max_attempts=max_attempts,
        grace_seconds=grace_seconds,
        until_done=until_done,
        run=run,
        sync=sync,
    )
    pool = WorkerPool(queue, runs, processes, options, on_settled=_log)
    if stop_with_parent is not None:
        pool.stop_with(stop_with_parent)
    if alive_file is not None:
        pool.show_life(alive_file)
    code = pool.run()
    if pool.refused:
        click.echo(_refused_text(pool.refused), err=True)
    if pool.killed_by:
        click.echo(killed_text(pool.killed_by), err=True)
    sys.exit(code or (stopped_code if until_done and pool.stopped else 0))


worker.params.insert(1, runs_option(required=True))


def _require_queue(url: str, until_done: bool) -> None:
    """Raise InvalidParameter for a queue that nobody has made: its address may be misspelt.

    A worker that is to stay may wait for a queue in the cloud, which others are about to make.
    """
    queue = open_queue(url)
    try:
        if queue.exists():
            return
    finally:
        queue.close()
    if until_done or url.startswith("sqlite://"):
        raise InvalidParameter(
            f"there is no queue {url}: nobody has made it. Look for a misspelling; a queue is made "
            "when tasks are sent to it, by the command of a stage with --queue"
        )
    click.echo(f"waiting for the queue {url}, which nobody has made yet", err=True)


def _refused_text(count: int) -> str:
    messages = "1 message was" if count == 1 else f"{count:,} messages were"
    return (
        f"{messages} refused, for the reasons above, and went to the dead letters: not tasks of a "
        "run that may be worked on"
    )


def _log(event: Settled) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    click.echo(f"time={stamp} {event.line()}")


def dags_path() -> Path:
    """The folder of the installed DAG files."""
    return (Path(__file__).parent.parent / "dags").resolve()


@click.command("dags-folder")
def dags_folder() -> None:
    """Print the folder of the installed DAG files, for an Airflow DAG bundle to point at."""
    click.echo(dags_path())
