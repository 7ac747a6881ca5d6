"""Commands on runs: watch, resume, finish; and how a run is worked on from a terminal."""

import os
import sys
import time
from collections import Counter
from typing import Any

import click
from tqdm import tqdm

from igneous_airflow.cli.addresses import folder_url, program, quoted, shown
from igneous_airflow.progress import Pace, Progress, State
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState
from igneous_airflow.storage.provenance import author
from igneous_airflow.worker.loop import Settled, WorkerOptions
from igneous_airflow.worker.pool import WorkerPool, killed_text

_ERRORS_SHOWN = 10
_SEEN_SECONDS = 45.0  # three times as long as the pause between a worker's signs of life
_ROUNDS = 3  # of sending lost messages again
_SAMPLE_SECONDS = 2.0
_INTERRUPTED = 130  # what shells use for Ctrl-C
WORKERS_KILLED = 3  # exit code: all is proved, but signals have killed worker processes


def _runs_url(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    return folder_url(value)


def runs_option(*, required: bool = False) -> click.Option:
    """The option that says where runs are recorded, with a default unless it is required."""
    default: dict[str, Any] = {} if required else {"default": "~/.igneous_airflow/runs"}
    return click.Option(
        ["--runs"],
        envvar="IGNEOUS_AIRFLOW_RUNS",
        required=required,
        **default,
        show_default=True,
        callback=_runs_url,
        help="Folder in which runs are recorded: a path or a bucket URL.",
    )


#: On a command that works with local processes.
sync_option = click.option(
    "--sync/--no-sync",
    envvar="IGNEOUS_AIRFLOW_SYNC",
    default=True,
    show_default=True,
    help="On local disks, wait until what a task wrote is on the disk before the task counts as "
    "done. Turn it off for scratch disks whose content need not survive a power cut.",
)


def _add_run_argument(command: click.Command) -> click.Command:
    command.params[:0] = [click.Argument(["run"], metavar="RUN"), runs_option()]
    return command


def _load(run: str, runs: str) -> Run:
    """Load a run by its folder's URL or path, or by its name in the runs folder."""
    named = "://" not in run and not os.path.isdir(os.path.expanduser(run))  # noqa: PTH111, PTH112
    return Run.load(f"{runs}/{run}" if named else folder_url(run))


@_add_run_argument
@click.command
def status(run: str, runs: str) -> None:
    """Show how far RUN is: planned, done, failed, waiting, rate, time left, and what to do next.

    RUN is the run's folder, or its name in the runs folder.
    """
    loaded = _load(run, runs)
    pace = Pace()
    earlier = progress = loaded.progress()
    words = pace.describe(progress)
    if progress.undecided:
        time.sleep(_SAMPLE_SECONDS)
        progress = loaded.progress()
        words = pace.describe(progress)
    judgement = progress.state
    if progress.undecided and progress.done > earlier.done:
        judgement = State.WORKING  # between two tasks a worker holds none
    finished = loaded.is_finished
    click.echo(f"run      {loaded.id} ({loaded.stage})")
    click.echo(f"state    {_state(loaded, judgement)}")
    click.echo(f"planned  {progress.planned:,}")
    click.echo(f"done     {progress.done:,}")
    click.echo(f"failed   {progress.dead:,} given up, {progress.failed_attempts:,} failed attempts")
    click.echo(f"waiting  {_waiting(progress)}")
    if progress.undecided:
        seen = loaded.ledger.workers(_SEEN_SECONDS)
        click.echo(f"workers  {len(seen):,} seen in the last {_SEEN_SECONDS:.0f} seconds")
    click.echo(f"progress {words}")
    if judgement is not State.DONE:
        for failure in loaded.final_failures(_ERRORS_SHOWN):
            click.echo(f"  task {failure.task}, attempt {failure.attempt}: {failure.error}")
    if not finished:
        click.echo(f"next     {_next_step(loaded, progress, judgement)}")


def _state(run: Run, judgement: State) -> str:
    """The state of a run, in words."""
    if run.is_finished:
        return "finished"
    if run.state is LaunchState.CANCELLED:
        last = run.changes[-1]
        return f"cancelled by {last.by or 'an unknown person'} at {last.at}"
    return str(judgement)


def _waiting(progress: Progress) -> str:
    """What is in the queue, in words."""
    words = f"{progress.waiting:,}, and {progress.leased:,} held by workers"
    if progress.expired:
        words += f"; {progress.expired:,} were held by workers that fell silent"
    if progress.delayed:
        words += f"; {progress.delayed:,} failed before and wait for their next attempt"
    if progress.shared:
        words += "; those of other runs in this queue included"
    if not progress.exact:
        words += "; this queue's counts lag behind by up to a minute"
    return words


def _next_step(run: Run, progress: Progress, judgement: State) -> str:
    """What to do about an unfinished run, in words."""
    path = quoted(run.url)
    resume = f"{program()} resume {path}"
    worker = worker_command(run)
    if run.state is LaunchState.CANCELLED and run.was_launched:
        return f"it stays as it is; to go on: {resume}"
    if why := run.why_it_waits:
        return f"nothing: it may not begin ({why}); start it again to do the work"
    if judgement is State.WAITING and progress.delayed:
        return f"wait for the next attempts, if there are workers; if not: {worker}"
    return {
        State.WAITING: f"no worker has come yet; start one: {worker}",
        State.WORKING: f"wait; or, if the workers were killed just now, go on: {resume}",
        State.INTERRUPTED: f"no worker works on it any more; go on: {resume}",
        State.STALLED: f"tasks are neither done nor in the queue; send them again: {resume}",
        State.FAILED: f"fix the cause, then try again what was given up: {resume}",
        State.DONE: f"prove it and record it: igneous-airflow finish {path}",
    }[judgement]


@_add_run_argument
@click.command
@click.option(
    "--processes", type=click.IntRange(1), default=2, show_default=True, help="Worker processes."
)
@sync_option
@click.option(
    "--send-only", is_flag=True, help="Only send the tasks again, for workers that are elsewhere."
)
def resume(run: str, runs: str, processes: int, sync: bool, send_only: bool) -> None:
    """Go on with RUN on this machine: only tasks without a receipt are done again."""
    loaded = _load(run, runs)
    if (summary := loaded.summary()) is not None:
        click.echo(summary.describe())
        return
    loaded = loaded.go_on(author())
    loaded.prepare()
    # what waits in a queue of several runs may be others': one who resumes knows better
    sent = loaded.resume() if loaded.own_queue else loaded.enqueue()
    if send_only:
        click.echo(f"sent {sent:,} tasks to {loaded.queue}")
        return
    sys.exit(work_on(loaded, processes, sync=sync))


@_add_run_argument
@click.command
def cancel(run: str, runs: str) -> None:
    """Cancel RUN: workers finish the tasks they hold and begin no other.

    What is done stays; `resume` goes on with the rest.
    """
    cancelled = _load(run, runs).cancel(author())
    click.echo(
        f"{cancelled.id} is cancelled. Go on with: {program()} resume {quoted(cancelled.url)}"
    )


@_add_run_argument
@click.command
def redrive(run: str, runs: str) -> None:
    """Send the tasks of RUN that were given up, its dead letters, to the queue once more.

    For when their cause is mended while others are still worked on; `resume` waits for nobody.
    """
    loaded = _load(run, runs)
    if not (sent := loaded.redrive()):
        click.echo(f"No task of {loaded.id} is among the dead letters.")
        return
    click.echo(
        f"{sent:,} tasks are back in {loaded.queue}.\n"
        f"  if no worker is left:  {worker_command(loaded)}"
    )


@_add_run_argument
@click.command
def finish(run: str, runs: str) -> None:
    """Prove that RUN is complete, and record its provenance."""
    click.echo(_load(run, runs).finish().describe())


def worker_command(run: Run) -> str:
    """What to type for a worker of a run."""
    return f"{program()} worker {quoted(run.queue)} --runs {quoted(run.runs_folder)} --until-done"


def work_on(run: Run, processes: int, *, sync: bool) -> int:
    """Work on a run with local processes and a progress bar until it is finished.

    Returns the exit code, which is not 0 when signals killed processes, though all is proved. Exits
    and says how to resume when it was interrupted; raises RunFailed when tasks failed for good, and
    AuditFailed when output is missing.
    """
    killed_by: Counter[str] = Counter()
    for attempt in range(_ROUNDS):
        if attempt:
            run.enqueue()
        code = _work(run, processes, killed_by, sync=sync)
        progress = run.progress()
        if progress.state is not State.STALLED:
            break
    if progress.undecided:
        click.echo(_interrupted(run, progress), err=True)
        sys.exit(code or _INTERRUPTED)
    if progress.state is State.DONE:
        click.echo(
            "all tasks are done; looking whether everything that they made is there", err=True
        )
    summary = run.finish()
    if run.own_queue:
        run.open_queue().delete()
    click.echo(summary.describe())
    click.echo(f"  recorded in {shown(run.url)}")
    if not killed_by:
        return 0
    click.echo(f"All is proved, but {killed_text(killed_by)}", err=True)
    return WORKERS_KILLED


def _interrupted(run: Run, progress: Progress) -> str:
    return (
        f"Stopped with {progress.done:,} of {progress.planned:,} tasks done. Go on with: "
        f"{program()} resume {quoted(run.url)}"
    )


def bar_of(run: Run, *, done: int = 0) -> "tqdm[Any]":
    """A bar of a run's tasks; where this is no terminal, told twice a minute at most."""
    often = 0.1 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=run.planned,
        initial=done,
        unit="task",
        desc=run.stage,
        file=sys.stderr,
        mininterval=often,
        maxinterval=10 * often,
    )


def _work(run: Run, processes: int, killed_by: Counter[str], *, sync: bool) -> int:
    """Work until nothing is left to wait for; counts the processes that signals have killed."""
    with bar_of(run, done=run.done().count) as bar:

        def on_settled(event: Settled) -> None:
            if event.outcome == "done":
                bar.update()
            elif event.error:
                bar.write(event.line(), file=sys.stderr)

        options = WorkerOptions(until_done=True, sync=sync)
        pool = WorkerPool(run.queue, run.runs_folder, processes, options, on_settled)
        code = pool.run()
    killed_by.update(pool.killed_by)
    return code
