"""A run that waits, was cancelled, or is finished again, writes over nothing made in between."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from igneous_airflow.errors import AuditFailed, PlanRefused, RunFailed
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.run import Run
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.testing.layers import (
    LayerSpec,
    random_voxels,
    read_with_cloudvolume,
    write_layer,
)
from igneous_airflow.testing.stages import do_missing

SPEC = LayerSpec(chunk_size=Vec3(8, 8, 8))
LATER = r"since the run first was planned, TransferTask has written .* start a new run and confirm"


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Run]:
    """Launches a transfer of one of two layers into the same place."""
    write_layer(tmp_path / "ours", random_voxels(Vec3(16, 16, 16)), SPEC)
    write_layer(tmp_path / "theirs", np.full((16, 16, 16, 1), 7, np.uint8, order="F"), SPEC)

    def launch(name: str, source: str, *, confirm: bool = False) -> Run:
        stage = Transfer(
            src=str(tmp_path / source), dest=str(tmp_path / "dest"), max_mips=0, confirm=confirm
        )
        url = f"file://{tmp_path}/runs/{name}"
        return Run.launch(stage, url=url, queue=f"sqlite://{tmp_path}/{name}.db", by="tester")[0]

    return launch


def complete(run: Run) -> None:
    work(run)
    run.finish()


def work(run: Run) -> None:
    run.prepare()
    do_missing(run)


def is_theirs(folder: Path) -> bool:
    return bool((read_with_cloudvolume(folder / "dest", 0) == 7).all())


def test_a_run_that_waited_for_approval_while_others_wrote_is_not_approved(
    launch: Callable[..., Run], tmp_path: Path
) -> None:
    run = launch("first", "ours").require_approval("it is large")
    complete(launch("second", "theirs"))
    with pytest.raises(RunFailed, match=LATER):
        run.approve("operator")
    with pytest.raises(RunFailed, match="may not begin"):
        run.prepare()
    assert is_theirs(tmp_path)


def test_a_cancelled_run_does_not_go_on_over_what_others_wrote(
    launch: Callable[..., Run], tmp_path: Path
) -> None:
    run = launch("first", "ours")
    run.prepare()
    run.cancel("operator")
    complete(launch("second", "theirs"))
    with pytest.raises(PlanRefused, match=LATER):
        launch("first", "ours")
    with pytest.raises(RunFailed, match=LATER):
        run.go_on("operator")
    assert is_theirs(tmp_path)
    complete(launch("third", "ours", confirm=True))
    assert not is_theirs(tmp_path)


def test_finishing_a_replaced_run_again_says_so_and_takes_no_receipt_back(
    launch: Callable[..., Run], tmp_path: Path
) -> None:
    run = launch("first", "ours")
    complete(run)
    complete(launch("second", "theirs", confirm=True))
    with pytest.raises(RunFailed, match=LATER):
        run.finish()
    assert run.done().count == run.planned
    assert run.is_finished
    assert is_theirs(tmp_path)


def test_a_run_whose_output_was_replaced_before_its_proof_takes_no_receipt_back(
    launch: Callable[..., Run], tmp_path: Path
) -> None:
    run = launch("first", "ours")
    work(run)
    complete(launch("second", "theirs", confirm=True))
    chunk = tmp_path / "dest" / "8_8_40" / "0-8_0-8_0-8"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(AuditFailed, match=LATER):
        run.finish()
    assert run.done().count == run.planned


def test_a_run_of_the_same_parameters_goes_on_and_one_whose_replacing_was_confirmed(
    launch: Callable[..., Run], tmp_path: Path
) -> None:
    complete(launch("theirs", "theirs"))
    run = launch("first", "ours", confirm=True)
    run.prepare()
    run.cancel("operator")
    complete(run.go_on("operator"))
    waiting = launch("second", "theirs", confirm=True).require_approval("it is large")
    complete(waiting.approve("operator"))
    assert is_theirs(tmp_path)
