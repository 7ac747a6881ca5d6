"""Runs that are killed at random moments, again and again, leave what undisturbed runs leave.

Another campaign: `IGNEOUS_AIRFLOW_SEED=1000 make e2e`; a run alone, by its id, `-k seed1017`.
"""

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from random import Random
from typing import Any

import pytest
from attempts import BASE, PHASES, Accident, Phase, Step, attempt, run_url
from kill_cases import CASES, Case
from twins import left, placed

from igneous_airflow.audit_log import read_entries
from igneous_airflow.run import Run
from igneous_airflow.run_record import LaunchState

RUNS = 63
MOST_ACCIDENTS = 4
PATIENCE = 120  # seconds, of one process
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
#: Imported once, before any process is forked.
WARM = ("zmesh", "tinybrain", "cloudvolume", "numpy", "igneous_airflow.worker.loop")

pytestmark = [
    pytest.mark.services,
    # cloud-volume warns when it is first imported
    pytest.mark.filterwarnings("ignore:Please install grpcio-status:ImportWarning"),
]


@dataclass(frozen=True)
class Twin:
    """What an undisturbed run of a case leaves, and how many moments each of its phases has."""

    root: Path
    start: Path
    steps: list[Step]
    left: dict[str, Any]
    moments: Counter[Phase]


@dataclass
class Campaign:
    """Makes processes, which are cheap, and twins, one of each case."""

    folder: Path
    context: ForkServerContext
    twins: dict[str, Twin] = field(default_factory=dict)

    def start(self, *arguments: Any) -> BaseProcess:
        process = self.context.Process(target=attempt, args=arguments)
        process.start()
        return process

    def twin(self, case: Case) -> Twin:
        if case.__name__ not in self.twins:
            self.twins[case.__name__] = self._make_twin(case)
        return self.twins[case.__name__]

    def _make_twin(self, case: Case) -> Twin:
        root = self.folder / case.__name__
        root.mkdir()
        steps = case(root)
        start = self.folder / f"{case.__name__}-start"
        shutil.copytree(root, start)
        ours, theirs = self.context.Pipe()
        process = self.start(str(root), steps, None, theirs)
        process.join(PATIENCE)
        assert process.exitcode == 0
        return Twin(root, start, steps, left(root, root), ours.recv())


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(WARM))
    return Campaign(tmp_path_factory.mktemp("campaign"), context)


def accidents(chance: Random, moments: Counter[Phase]) -> list[Accident]:
    """Accidents in the order of the phases; the first one is sure to happen."""
    number = chance.randint(1, MOST_ACCIDENTS)
    drawn = [draw(chance, moments) for _ in range(number)]
    return sorted(drawn, key=lambda a: (a.phase[0], PHASES.index(a.phase[1]), a.moment))


def draw(chance: Random, moments: Counter[Phase]) -> Accident:
    """An accident in any phase. Only workers are stopped: others hold locks, and are waited for."""
    phase = chance.choice(sorted(moments))
    number = chance.choice(SIGNALS) if phase[1] == "work" else signal.SIGKILL
    cut = number == signal.SIGKILL and chance.random() < 0.5
    return Accident(phase, chance.randint(1, moments[phase]), number, cut)


def wait(process: BaseProcess) -> bool:
    """Wait until a process has ended or stands still, and say whether it stands still."""
    deadline = time.monotonic() + PATIENCE
    while process.is_alive():
        assert time.monotonic() < deadline, "it neither ends nor stops"
        if stands_still(process.pid or 0):
            return True
        process.join(0.01)
    return False


def stands_still(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("case", "seed"),
    [
        pytest.param(case, seed, id=f"{case.__name__}-seed{seed}")
        for seed, case in zip(range(BASE, BASE + RUNS), cycle(CASES), strict=False)
    ],
)
def test_a_run_killed_again_and_again_leaves_what_an_undisturbed_one_leaves(
    case: Case, seed: int, campaign: Campaign, tmp_path: Path
) -> None:
    twin, chance, root = campaign.twin(case), Random(seed), tmp_path / "root"
    shutil.copytree(twin.start, root)
    steps = placed(twin.steps, twin.root, root)
    struck, asleep = [], list[BaseProcess]()
    for accident in accidents(chance, twin.moments):
        process = campaign.start(str(root), steps, accident)
        if wait(process):
            asleep.append(process)
        if process.exitcode != 0 or accident.number == signal.SIGTERM:
            struck.append(accident)
        print(f"seed {seed}: {accident} ended with {process.exitcode}")
    assert struck
    last = campaign.start(str(root), steps, None)
    wait(last)
    assert last.exitcode == 0
    for process in asleep:  # what it was at is done, by others
        os.kill(process.pid or 0, chance.choice((signal.SIGCONT, signal.SIGKILL)))
        process.join(PATIENCE)
        assert process.exitcode in (0, -signal.SIGKILL)
    assert left(root, root, twin.root) == twin.left
    assert_proved(root, steps)


def assert_proved(root: Path, steps: list[Step]) -> None:
    """Check that each run is done and on record, and that another proof changes nothing."""
    told = {(entry.run, entry.action) for entry in read_entries(f"file://{root}/runs")}
    before = voxels(root)
    for number, (stage, _) in enumerate(steps):
        run = Run.load(run_url(str(root), number))
        assert run.state is LaunchState.DONE
        assert run.done().count == run.planned
        assert (run.id, "launched") in told
        assert (run.id, "deleted") in told or stage != "delete"
        assert run.finish() == run.summary()
    assert voxels(root) == before
    assert list(root.rglob("*.partial")) == []


def voxels(root: Path) -> dict[str, Any]:
    """What twins have in common but for the provenance, in which a proof repeated late is told."""
    return {name: file for name, file in left(root, root).items() if isinstance(file, bytes)}
