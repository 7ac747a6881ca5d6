import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import pytest

from igneous_airflow.cli.runs import WORKERS_KILLED
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.worker.loop import Settled, WorkerOptions
from igneous_airflow.worker.pool import WorkerPool, killed_text

OPTIONS = WorkerOptions(retry_delay=0.01, idle_seconds=0.05, until_done=True)


def pool(run: Run, processes: int = 1, options: WorkerOptions = OPTIONS) -> tuple[int, list]:
    """Work with processes of this one; returns exit code and settled tasks."""
    settled: list[Settled] = []
    return WorkerPool(run.queue, run.runs_folder, processes, options, settled.append).run(), settled


def children_of(pid: int) -> list[int]:
    """The worker processes of a pool, without multiprocessing's own helper."""
    pids = []
    for entry in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if b"spawn_main" in Path(f"/proc/{entry}/cmdline").read_bytes():
                pids.append(int(entry))
    return pids


class Command:
    """`igneous-airflow worker` in a process group of its own."""

    def __init__(self, run: Run, log: Path, *options: str) -> None:
        self.log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "igneous_airflow", "worker", run.queue),
                    *("--runs", run.runs_folder, *options),
                ],
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 30) -> tuple[int, str]:
        """Wait for the end; returns exit code and output."""
        code = self.process.wait(seconds)
        return code, self.log.read_text()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(run: Run, *options: str) -> Command:
        started.append(Command(run, tmp_path / f"worker-{len(started)}.log", *options))
        return started[-1]

    yield start
    for command in started:
        command.kill()


def test_several_processes_drain_a_queue(held_layer, tmp_path: Path):
    held_layer.let_go()
    run = held_layer.launch(tmp_path)
    code, settled = pool(run, processes=2)
    assert code == 0
    assert sorted((s.outcome, s.task) for s in settled) == [("done", i) for i in range(4)]
    assert run.progress().state == "done"
    assert run.finish().audit.outputs == {"16_16_40": 4}


def test_a_task_that_is_given_up_makes_the_exit_code_1(held_layer, tmp_path: Path):
    held_layer.let_go()
    held_layer.chunk.write_bytes(b"too short")
    run = held_layer.launch(tmp_path)
    code, settled = pool(run)
    assert code == 1
    assert sorted(s.outcome for s in settled) == ["done"] * 3 + ["failed"]
    (failure,) = run.final_failures()
    assert failure.task == 0
    assert "0-8_0-8_0-8" in failure.error


def test_sigterm_lets_the_task_in_hand_finish_and_takes_no_other(
    held_layer, tmp_path: Path, worker
):
    run = held_layer.launch(tmp_path)
    command = worker(run)
    held_layer.wait_until_read()
    command.signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        command.end(0.3)
    held_layer.let_go()
    code, output = command.end()
    assert code == 0
    assert "outcome=done" in output
    assert (run.progress().done, run.progress().waiting, run.progress().leased) == (1, 3, 0)


def test_a_second_sigterm_gives_the_task_back_at_once(held_layer, tmp_path: Path, worker):
    run = held_layer.launch(tmp_path)
    command = worker(run)
    held_layer.wait_until_read()
    command.signal(signal.SIGTERM)
    time.sleep(0.1)  # two signals of a kind at the same moment are one
    command.signal(signal.SIGTERM)
    code, output = command.end(5)
    assert code == 0
    assert "outcome='given back'" in output
    progress = run.progress()
    assert (progress.waiting, progress.leased, progress.failed_attempts) == (4, 0, 0)
    held_layer.let_go()
    assert pool(run)[0] == 0
    assert run.progress().state == "done"


def test_the_end_of_the_grace_gives_the_task_back(held_layer, tmp_path: Path, worker):
    run = held_layer.launch(tmp_path)
    command = worker(run, "--grace-seconds", "0.2")
    held_layer.wait_until_read()
    command.signal(signal.SIGTERM)
    code, output = command.end(5)
    assert (code, output.count("outcome='given back'")) == (0, 1)
    assert open_queue(run.queue).lease(1) is not None


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--stopped-code", "143"), 143)])
def test_workers_stopped_before_all_was_done_end_well_or_as_asked_for(
    held_layer, tmp_path: Path, worker, options, code
):
    run = held_layer.launch(tmp_path)
    command = worker(run, "--until-done", "--grace-seconds", "0", *options)
    held_layer.wait_until_read()
    command.signal(signal.SIGTERM)
    assert command.end(5)[0] == code


def test_a_probe_sees_that_the_workers_are_alive_while_a_task_runs(
    held_layer, tmp_path: Path, worker, wait_until
):
    alive = tmp_path / "alive"
    worker(held_layer.launch(tmp_path), "--alive-file", str(alive))
    held_layer.wait_until_read()
    before = alive.stat().st_mtime_ns
    wait_until(lambda: alive.stat().st_mtime_ns > before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_workers_that_are_just_starting_is_heard(
    held_layer, tmp_path: Path, worker, wait_until, number: int
):
    held_layer.let_go()
    run = held_layer.launch(tmp_path)
    open_queue(run.queue).purge()
    command = worker(run, "--processes", "3")
    wait_until(lambda: children_of(command.process.pid))
    os.killpg(command.process.pid, number)  # to the children too, as a terminal does
    code, output = command.end(15)
    assert (code, output) == (0, "")


def test_a_killed_worker_is_noticed_named_and_replaced(held_layer, tmp_path: Path):
    run = held_layer.launch(tmp_path)
    victims: list[int] = []

    def kill_the_first() -> None:
        held_layer.wait_until_read()
        held_layer.mend()
        victims.extend(children_of(os.getpid()))
        os.kill(victims[0], signal.SIGKILL)

    thread = Thread(target=kill_the_first)
    thread.start()
    code, settled = pool(run)
    thread.join()
    assert code == 0
    assert [(s.outcome, s.task) for s in settled] == [
        ("retry", 0),
        ("done", 1),
        ("done", 2),
        ("done", 3),
        ("done", 0),
    ]
    assert f"worker process {victims[0]} was killed by SIGKILL" in settled[0].error
    (failure,) = run.ledger.failures()
    assert (failure.task, failure.attempt, failure.final) == (0, 1, False)
    assert failure.error.startswith("WorkerDied")
    assert "SIGKILL" in failure.error
    assert run.progress().state == "done"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_worker_that_a_signal_kills_after_its_last_task_shows_in_the_exit_code(
    held_layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    held_layer.let_go()
    run = held_layer.launch(tmp_path)
    die_at_the_end(tmp_path / "dying", number)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "dying"))
    answer = command("resume", run.url, "--processes", "2")
    assert answer.returncode == WORKERS_KILLED
    assert re.search(
        rf"All is proved, but \d+ worker process(es were| was) killed by {number.name}",
        answer.stderr,
    )
    assert run.progress().state == "done"
    assert run.summary() is not None


def test_the_command_for_workers_says_so_but_is_not_to_be_started_again(
    held_layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    held_layer.let_go()
    run = held_layer.launch(tmp_path)
    die_at_the_end(tmp_path / "dying", signal.SIGSEGV)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "dying"))
    answer = command("worker", run.queue, "--runs", run.runs_folder, "--until-done")
    assert answer.returncode == 0
    assert "worker process was killed by SIGSEGV" in answer.stderr
    assert run.progress().state == "done"


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    whole = [sys.executable, "-m", "igneous_airflow", *arguments]
    return subprocess.run(whole, capture_output=True, check=False, text=True, timeout=120)


def die_at_the_end(folder: Path, number: signal.Signals) -> None:
    """Let workers of this Python path be killed when their interpreters end, as by a library."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import atexit, multiprocessing, os, sys\n"
        "def die():\n"
        "    has_worked = 'igneous_airflow.stages.downsample' in sys.modules\n"
        "    if has_worked and multiprocessing.parent_process() is not None:\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "atexit.register(die)\n"
    )


@pytest.mark.parametrize(
    ("killed_by", "text"),
    [
        ({"SIGSEGV": 1}, "1 worker process was killed by SIGSEGV"),
        ({"SIGSEGV": 1200}, "1,200 worker processes were killed by SIGSEGV"),
        ({"SIGBUS": 2, "SIGKILL": 1}, "3 worker processes were killed: 2 by SIGBUS, 1 by SIGKILL"),
    ],
)
def test_killed_workers_are_counted_in_words(killed_by, text):
    assert killed_text(killed_by) == text


def test_workers_that_were_asked_to_stop_are_not_counted_as_killed(
    held_layer, tmp_path: Path, worker, wait_until
):
    run = held_layer.launch(tmp_path)
    command = worker(run)
    wait_until(lambda: children_of(command.process.pid))
    command.signal(signal.SIGTERM)
    code, output = command.end(30)
    assert (code, output.count("killed")) == (0, 0)


def test_a_task_that_kills_its_worker_every_time_is_given_up(
    held_layer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = held_layer.launch(tmp_path)
    ended = Event()

    def kill_whoever_takes_it() -> None:
        while not ended.is_set():
            with suppress(AssertionError):
                held_layer.wait_until_read(0.2)
                for child in children_of(os.getpid()):
                    with suppress(ProcessLookupError):  # dead since the last look
                        os.kill(child, signal.SIGKILL)

    thread = Thread(target=kill_whoever_takes_it)
    thread.start()
    code, settled = pool(run, options=replace(OPTIONS, max_attempts=2))
    ended.set()
    thread.join()
    assert code == 1
    assert [s.outcome for s in settled if s.task == 0] == ["retry", "failed"]
    assert [s.outcome for s in settled if s.task > 0] == ["done"] * 3
    (failure,) = run.final_failures()
    assert (failure.task, failure.attempt, failure.final) == (0, 2, True)
    assert run.progress().state == "failed"


def test_workers_that_die_before_their_first_task_are_not_replaced_for_ever(tmp_path: Path):
    broken = tmp_path / "queue.db"
    broken.write_bytes(b"this is no database" * 100)
    settled: list[Settled] = []
    code = WorkerPool(f"sqlite://{broken}", "file:///runs", 2, OPTIONS, settled.append).run()
    assert code == 1
    assert 3 <= len(settled) <= 4
    assert {s.outcome for s in settled} == {"failed"}
    assert all("ended with exit code 1" in s.error for s in settled)


def test_workers_that_cannot_read_the_queue_say_why_without_a_traceback(tmp_path: Path):
    broken = tmp_path / "queue.db"
    broken.write_bytes(b"this is no database" * 100)
    answer = subprocess.run(
        [
            *(sys.executable, "-m", "igneous_airflow", "worker", f"sqlite://{broken}"),
            *("--runs", str(tmp_path), "--until-done"),
        ],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    assert answer.returncode == 1
    assert f"Error: {broken} does not work as a queue" in answer.stderr
    assert "Traceback" not in answer.stdout + answer.stderr


def test_workers_whose_parent_was_killed_finish_their_task_and_stop(
    held_layer, tmp_path: Path, worker, wait_until
):
    run = held_layer.launch(tmp_path)
    command = worker(run)
    held_layer.wait_until_read()
    (child,) = children_of(command.process.pid)
    command.signal(signal.SIGKILL)
    command.process.wait()
    held_layer.let_go()
    wait_until(lambda: not Path(f"/proc/{child}").exists(), 10)
    progress = run.progress()
    assert (progress.done, progress.waiting, progress.leased) == (1, 3, 0)


def test_a_pool_stops_with_its_parent_when_asked_to(held_layer, tmp_path: Path, wait_until):
    run = held_layer.launch(tmp_path)
    log = tmp_path / "log"
    command = (
        f"{sys.executable} -m igneous_airflow worker {run.queue} --runs {run.runs_folder} "
        f"--stop-with-parent $$ --grace-seconds 0.2 > {log} 2>&1 & echo $!; wait"
    )
    with subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        leader = int(shell.stdout.readline())
        held_layer.wait_until_read()
        shell.kill()
    wait_until(lambda: not Path(f"/proc/{leader}").exists(), 10)
    assert "outcome='given back'" in log.read_text()
    progress = run.progress()
    assert (progress.waiting, progress.leased) == (4, 0)
