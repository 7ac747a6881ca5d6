"""Worker processes on the machine of the Airflow task; used by `stage_workers.py`."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from igneous_airflow.errors import RunFailed, TransientError
from igneous_airflow.operators.arguments import worker_arguments
from igneous_airflow.operators.params import RunOptions, read_params
from igneous_airflow.operators.settings import aws_conn_id, is_on_sqs, load_run
from igneous_airflow.operators.stage import RunOperator, explained
from igneous_airflow.progress import Pace, State
from igneous_airflow.run import Run

if TYPE_CHECKING:
    from airflow.sdk import Context

_ROUNDS = 3  # of working, when messages get lost
_LOOK_SECONDS = 5.0  # between looks at the progress, or ten times what a look takes
# Airflow kills a task 5 seconds after asking it to stop, and by then all must be over.
_GIVE_BACK_SECONDS = 1.5
_KILL_SECONDS = 4.0


class LocalWorkers(RunOperator):
    """Work on a run with local processes until no task is left to wait for.

    How many, is the DAG run's param `workers`. Fails without retry, naming tasks and errors, when
    tasks were given up; anything else that keeps the run from being done may be retried, which
    goes on where it stopped.
    """

    def __init__(self, *, retries: int = 2, **kwargs: Any) -> None:
        super().__init__(retries=retries, **kwargs)
        self._workers: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def execute(self, context: "Context") -> None:
        """Work, as an Airflow task."""
        self.work(context)

    def work(self, context: "Context") -> None:
        """Send what is missing if nobody can have it, then work."""
        options = read_params(RunOptions, context["params"])
        with explained():
            run = load_run(self.run_url)
            for _ in range(_ROUNDS):
                if sent := run.resume():
                    self.log.info("Sent %s tasks that are not done yet", f"{sent:,}")
                if run.progress().state is State.DONE:
                    break
                self._work(run, options)
                if self._stopped or run.progress().state is not State.STALLED:
                    break
            self._require_done(run)

    def on_kill(self) -> None:
        """Stop the workers; the tasks that they hold go back to the queue."""
        self._stopped = True
        workers = self._workers
        if workers is None:
            return
        self.log.info("Stopping the workers")
        deadline = time.monotonic() + _KILL_SECONDS
        workers.terminate()  # the leader asks the others
        while workers.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)

    def _work(self, run: Run, options: RunOptions) -> None:
        """Run the worker command to its end, with its lines and the progress in the task's log."""
        read, write = os.pipe()
        # The workers hold the reading end as well: what they say after the death of this process,
        # while they give back what they hold, must not fail as a broken pipe.
        self._workers = subprocess.Popen(  # noqa: S603
            _command(run, options),
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.STDOUT,
            pass_fds=(read,),
            start_new_session=True,
            env={**_keys(run), **os.environ},  # its own credentials, if any, come first
        )
        os.close(write)
        with os.fdopen(read, errors="replace") as lines:
            logger = Thread(target=self._log_lines, args=(lines,), daemon=True)
            logger.start()
            try:
                if self._stopped:  # while they were started
                    self.on_kill()
                self._log_progress(run, logger)
            except BaseException:
                self.on_kill()
                raise
            finally:
                logger.join()
                code = self._workers.wait()
                self._workers = None
        self.log.info("The workers have ended with exit code %s", code)

    def _log_lines(self, lines: IO[str]) -> None:
        for line in lines:
            if " outcome=failed " in line:
                self.log.error("%s", line.rstrip())
            else:
                self.log.info("%s", line.rstrip())

    def _log_progress(self, run: Run, logger: Thread) -> None:
        """Log how far the run is, whenever that changes, until the workers' lines end."""
        pace, said = Pace(), ""
        while True:
            started = time.monotonic()
            with suppress(TransientError):  # the workers go on, and the next look may succeed
                if (text := pace.describe(run.progress())) != said:
                    self.log.info("%s", text)
                    said = text
            if not logger.is_alive():
                return
            logger.join(max(_LOOK_SECONDS, 10 * (time.monotonic() - started)))

    def _require_done(self, run: Run) -> None:
        progress = run.progress()
        try:
            run.require_done(progress)
        except RunFailed as error:
            # tasks that were given up would fail again; the machine's troubles may pass
            kind = AirflowFailException if progress.state is State.FAILED else AirflowException
            raise kind(str(error)) from None


def _keys(run: Run) -> dict[str, str]:
    """What the workers need to use the queue, as environment variables, which only they see."""
    if not is_on_sqs(run.queue):
        return {}
    from igneous_airflow.operators.aws import static_keys

    return static_keys(aws_conn_id())


def _command(run: Run, options: RunOptions) -> list[str]:
    return [
        *(sys.executable, "-m", "igneous_airflow", "worker"),
        *worker_arguments(run, options, options.workers, _GIVE_BACK_SECONDS),
        *("--stop-with-parent", str(os.getpid())),
    ]
