"""Commands on runs: watch, resume, finish; and how a run is worked on from a terminal."""

import os
import shlex
import sys
import time

import click
from tqdm import tqdm

from igneous_airflow.cli.addresses import folder_url, shown
from igneous_airflow.progress import Pace, Progress, State
from igneous_airflow.run import Run
from igneous_airflow.worker.loop import Settled, WorkerOptions
from igneous_airflow.worker.pool import WorkerPool

_ROUNDS = 3  # of sending lost messages again
_SAMPLE_SECONDS = 2.0
_INTERRUPTED = 130  # what shells use for Ctrl-C


def _state_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    return folder_url(value)


def state_option() -> click.Option:
    """The option that says where runs are recorded."""
    return click.Option(
        ["--state"],
        envvar="IGNEOUS_AIRFLOW_STATE",
        default="~/.igneous_airflow/runs",
        show_default=True,
        callback=_state_url,
        help="Folder in which runs are recorded: a path or a bucket URL.",
    )


def _add_run_argument(command: click.Command) -> click.Command:
    command.params[:0] = [click.Argument(["run"], metavar="RUN"), state_option()]
    return command


def _load(run: str, state: str) -> Run:
    """Load a run by its folder's URL or path, or by its name in the state folder."""
    named = "://" not in run and not os.path.isdir(os.path.expanduser(run))  # noqa: PTH111, PTH112
    return Run.load(f"{state}/{run}" if named else folder_url(run))


@_add_run_argument
@click.command
def status(run: str, state: str) -> None:
    """Show how far RUN is: planned, done, failed, waiting, rate, time left.

    RUN is the run's folder, or its name in the state folder.
    """
    loaded = _load(run, state)
    pace = Pace()
    progress = loaded.progress()
    words = pace.describe(progress)
    if progress.state is State.WORKING:
        time.sleep(_SAMPLE_SECONDS)
        progress = loaded.progress()
        words = pace.describe(progress)
    click.echo(f"run      {loaded.id} ({loaded.stage})")
    click.echo(f"state    {'finished' if loaded.is_finished else progress.state}")
    click.echo(f"planned  {progress.planned:,}")
    click.echo(f"done     {progress.done:,}")
    click.echo(f"failed   {progress.dead:,} given up, {progress.failed_attempts:,} failed attempts")
    click.echo(f"waiting  {progress.waiting:,}, and {progress.leased:,} being worked on")
    click.echo(f"progress {words}")
    for failure in loaded.final_failures()[:10] if progress.state is not State.DONE else []:
        click.echo(f"  task {failure.task}, attempt {failure.attempt}: {failure.error}")


@_add_run_argument
@click.command
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
def resume(run: str, state: str, processes: int) -> None:
    """Go on with RUN on this machine: only tasks without a receipt are done again."""
    loaded = _load(run, state)
    if (summary := loaded.summary()) is not None:
        click.echo(summary.describe())
        return
    loaded.prepare()
    loaded.resume()
    work_on(loaded, processes)


@_add_run_argument
@click.command
def redrive(run: str, state: str) -> None:
    """Send the tasks of RUN that were given up, its dead letters, to the queue once more.

    For when their cause is mended while others are still worked on; `resume` waits for nobody.
    """
    loaded = _load(run, state)
    if not (sent := loaded.redrive()):
        click.echo(f"No task of {loaded.id} is among the dead letters.")
        return
    click.echo(
        f"{sent:,} tasks are back in {loaded.queue}.\n"
        f"  if no worker is left:  igneous-airflow worker {shlex.quote(loaded.queue)} --until-done"
    )


@_add_run_argument
@click.command
def finish(run: str, state: str) -> None:
    """Prove that RUN is complete, and record its provenance."""
    click.echo(_load(run, state).finish().describe())


def work_on(run: Run, processes: int) -> None:
    """Work on a run with local processes and a progress bar until it is finished.

    Exits and says how to resume when it was interrupted; raises RunFailed when tasks failed for
    good, and AuditFailed when output is missing.
    """
    for attempt in range(_ROUNDS):
        if attempt:
            run.enqueue()
        code = _work(run, processes)
        progress = run.progress()
        if progress.state is not State.STALLED:
            break
    if progress.state is State.WORKING:
        click.echo(_interrupted(run, progress), err=True)
        sys.exit(code or _INTERRUPTED)
    summary = run.finish()
    if run.own_queue:
        run.open_queue().delete()
    click.echo(summary.describe())
    click.echo(f"  recorded in {shown(run.url)}")


def _interrupted(run: Run, progress: Progress) -> str:
    return (
        f"Stopped with {progress.done:,} of {progress.planned:,} tasks done. Go on with: "
        f"igneous-airflow resume {shown(run.url)}"
    )


def _work(run: Run, processes: int) -> int:
    with tqdm(total=run.planned, initial=run.done().count, unit="task", file=sys.stderr) as bar:

        def on_settled(event: Settled) -> None:
            if event.outcome == "done":
                bar.update()
            elif event.error:
                bar.write(event.line(), file=sys.stderr)

        options = WorkerOptions(until_done=True)
        return WorkerPool(run.queue, processes, options, on_settled).run()
