"""A message makes a worker do only what a run that is recorded and launched says."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from igneous_airflow.audit_log import read_entries
from igneous_airflow.errors import InvalidMessage, RunFailed, WrongRunsFolder
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.stages.delete import Delete
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.testing.stages import snapshot
from igneous_airflow.worker.assignments import Assignments
from igneous_airflow.worker.loop import Settled, Worker, WorkerOptions


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    write_layer(tmp_path / "layer", random_voxels(Vec3(64, 32, 8)))
    return tmp_path / "layer"


@pytest.fixture
def queue(tmp_path: Path) -> str:
    """A queue that others use as well."""
    return f"sqlite://{tmp_path}/shared.db"


def launch(stage: Any, tmp_path: Path, queue: str, name: str = "run") -> Run:
    url = f"file://{tmp_path}/runs/{name}"
    return Run.launch(stage, url=url, queue=queue, own_queue=False, by="ada@example.org")[0]


def begin(stage: Any, tmp_path: Path, queue: str, name: str = "run") -> Run:
    run = launch(stage, tmp_path, queue, name)
    run.prepare()
    run.enqueue()
    return run


def work(queue: str, tmp_path: Path, runs: str = "runs") -> list[Settled]:
    """Work on all that is in the queue."""
    settled: list[Settled] = []
    opened = open_queue(queue)
    options = WorkerOptions(idle_seconds=0, until_done=True)
    worker = Worker(
        opened,
        f"file://{tmp_path}/{runs}",
        options,
        lambda e: isinstance(e, Settled) and settled.append(e),
    )
    try:
        worker.work()
    finally:
        opened.close()
    return settled


def messages(queue: str) -> list[str]:
    """Take every message out of the queue."""
    opened, bodies = open_queue(queue), []
    while (lease := opened.lease(60)) is not None:
        bodies.append(lease.body)
        opened.done(lease)
    opened.close()
    return bodies


def test_replaying_the_messages_of_a_delete_that_is_done_deletes_nothing(
    layer: Path, tmp_path: Path, queue: str
) -> None:
    before = snapshot(layer)
    begin(Delete(layer=str(layer), confirm=True), tmp_path, queue)
    sent = messages(queue)
    open_queue(queue).send(sent)
    assert {settled.outcome for settled in work(queue, tmp_path)} == {"done"}
    Run.load(f"file://{tmp_path}/runs/run").finish()
    assert not (layer / "8_8_40").exists() or not any((layer / "8_8_40").iterdir())
    write_layer(layer, random_voxels(Vec3(64, 32, 8)))
    for name in (*sent, *sent):
        open_queue(queue).send([name])
    recorded = snapshot(tmp_path / "runs")
    settled = work(queue, tmp_path)
    assert {(s.outcome, s.error) for s in settled} == {
        ("refused", "the run run is done: its tasks are not worked on")
    }
    after = snapshot(layer)
    assert {name: after[name] for name in before if name.startswith("8_8_40/")} == {
        name: content for name, content in before.items() if name.startswith("8_8_40/")
    }
    assert snapshot(tmp_path / "runs") == recorded


def test_an_order_in_a_message_is_not_followed(layer: Path, tmp_path: Path, queue: str) -> None:
    begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue, "other")
    messages(queue)
    before = snapshot(tmp_path)
    order = {
        "version": 1,
        "run": f"file://{tmp_path}/elsewhere",
        "launch_id": "1a2b3c4d",
        "stage": "delete",
        "parameters": {"layer": str(layer), "scales": "8_8_40", "confirm": True},
        "index": 0,
        "start": 0,
        "stop": 1,
    }
    forms = [
        order,
        {**order, "version": 2},
        {"version": 2, "run": "other", "launch": "1a2b3c4d", "task": 0, "parameters": {}},
        {"version": 2, "run": "../elsewhere", "launch": "1a2b3c4d", "task": 0},
        {"version": 2, "run": f"file://{tmp_path}/elsewhere", "launch": "1a2b3c4d", "task": 0},
    ]
    open_queue(queue).send([json.dumps(form) for form in forms])
    assert [s.outcome for s in work(queue, tmp_path)] == ["refused"] * len(forms)
    after = snapshot(tmp_path)
    changed = [name for name in after if before.get(name) != after[name]]
    assert all(name.startswith("shared.db") for name in changed)
    reasons = [letter.reason for letter in open_queue(queue).dead_letters()]
    assert reasons[0].startswith(
        "this message was sent by an older version: igneous-airflow resume"
    )


def test_a_message_before_its_run_is_launched_does_nothing(
    layer: Path, tmp_path: Path, queue: str
) -> None:
    before = snapshot(layer)
    run = launch(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    waiting = run.require_approval("a person must look at it")
    message = waiting._encoder().encode(0)
    for state in ("planned", "approved", "cancelled"):
        if state == "approved":
            waiting.approve("bob@example.org")
        if state == "cancelled":
            waiting.cancel("bob@example.org")
        with pytest.raises(InvalidMessage, match=f"the run run is {state}"):
            Assignments(run.runs_folder).of(message)
    open_queue(queue).send([message])
    assert [s.outcome for s in work(queue, tmp_path)] == ["refused"]
    assert snapshot(layer) == before


def test_a_run_that_is_cancelled_stops_within_ten_seconds(
    layer: Path, tmp_path: Path, queue: str
) -> None:
    now = [0.0]
    run = begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    assignments = Assignments(run.runs_folder, clock=lambda: now[0])
    message = run._encoder().encode(0)
    assignments.of(message)
    run.cancel("bob@example.org", "wrong layer")
    now[0] = 9.9
    assignments.of(message)
    now[0] = 10.0
    with pytest.raises(InvalidMessage, match="the run run is cancelled"):
        assignments.of(message)


def test_a_cancelled_run_goes_on_when_it_is_resumed_and_not_before(
    layer: Path, tmp_path: Path, queue: str
) -> None:
    run = begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    run.cancel("bob@example.org", "wrong layer")
    assert {s.outcome for s in work(queue, tmp_path)} == {"refused"}
    for refused in (run.prepare, run.enqueue, run.finish):
        with pytest.raises(RunFailed, match=r"may not begin \(wrong layer\).*resume the run"):
            refused()
    resumed = run.go_on("ada@example.org")
    assert resumed.enqueue() == run.planned
    assert {s.outcome for s in work(queue, tmp_path)} == {"done"}
    resumed.finish()
    with pytest.raises(RunFailed, match="is done, so it cannot become cancelled"):
        resumed.cancel("bob@example.org")


def test_a_rejected_run_cannot_be_resumed(layer: Path, tmp_path: Path, queue: str) -> None:
    run = launch(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    run.require_approval("it is large").cancel("bob@example.org", "bob rejected its plan")
    with pytest.raises(RunFailed, match=r"bob rejected its plan.*start a new run"):
        run.go_on("ada@example.org")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resolved", {"layer": "file:///etc", "num_mips": 1}),
        ("stage", "delete"),
        ("queue", "memory://other"),
        ("blocks", 10**9),
        ("launch_id", "00000000"),
    ],
)
def test_a_record_that_was_changed_by_hand_is_refused_with_a_way_out(
    layer: Path, tmp_path: Path, queue: str, key: str, value: object
) -> None:
    run = begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    file = tmp_path / "runs/run/run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    before = snapshot(layer)
    settled = work(queue, tmp_path)
    assert {s.outcome for s in settled} == {"refused"}
    assert all("changed by hand" in s.error and "start the stage again" in s.error for s in settled)
    assert snapshot(layer) == before
    assert run.planned == len(settled)


@pytest.mark.parametrize("given", ["not mounted", "empty", "of others", "damaged"])
def test_a_worker_with_a_wrong_runs_folder_ends_and_leaves_the_queue_as_it_was(
    given: str, layer: Path, tmp_path: Path, queue: str
) -> None:
    run = begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    if given == "empty":
        (tmp_path / given).mkdir()
    if given == "of others":
        others, _ = Run.launch(
            Downsample(layer=str(layer), num_mips=1, mip=0),
            url=f"file://{tmp_path}/{given}/other",
            queue=f"sqlite://{tmp_path}/others.db",
            by="bob@example.org",
        )
        others.enqueue()
    if given == "damaged":
        (tmp_path / given).mkdir()
        (tmp_path / given / ".runs.json").write_text("{")
    for _ in range(3):
        with pytest.raises(WrongRunsFolder, match=r"--runs.*see that it is mounted"):
            work(queue, tmp_path, given)
    counts = open_queue(queue).counts()
    assert (counts.waiting, counts.leased, counts.dead) == (run.planned, 0, 0)
    assert {s.outcome for s in work(queue, tmp_path)} == {"done"}
    run.finish()


def test_a_message_of_a_run_whose_folder_was_removed_is_refused(
    layer: Path, tmp_path: Path, queue: str
) -> None:
    run = begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    shutil.rmtree(tmp_path / "runs/run")
    settled = work(queue, tmp_path)
    assert [s.outcome for s in settled] == ["refused"] * run.planned
    assert "no run run is recorded" in settled[0].error


def test_a_forged_mark_does_not_stop_workers_for_ever(
    layer: Path, tmp_path: Path, queue: str
) -> None:
    begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    forged = {"version": 2, "runs": "00000000", "run": "none", "launch": "1a2b3c4d", "task": 0}
    messages(queue)
    open_queue(queue).send([json.dumps(forged)])
    most = WorkerOptions().max_silent
    for _ in range(most):
        with pytest.raises(WrongRunsFolder):
            work(queue, tmp_path)
    assert [s.outcome for s in work(queue, tmp_path)] == ["refused"]


def test_a_run_folder_that_was_copied_is_refused(layer: Path, tmp_path: Path, queue: str) -> None:
    run = begin(Downsample(layer=str(layer), num_mips=1), tmp_path, queue)
    (tmp_path / "runs/run").rename(tmp_path / "runs/copy")
    message = json.dumps(json.loads(run._encoder().encode(0)) | {"run": "copy"})
    with pytest.raises(InvalidMessage, match="holds the record of another run, run: was it copied"):
        Assignments(run.runs_folder).of(message)


def test_the_audit_log_says_who_did_what(layer: Path, tmp_path: Path, queue: str) -> None:
    run = launch(Delete(layer=str(layer), confirm=True), tmp_path, queue)
    run = run.require_approval("it deletes").approve("bob@example.org")
    run.prepare()
    run.enqueue()
    run.cancel("eve@example.org", "too early")
    messages(queue)
    run.go_on("ada@example.org").enqueue()
    work(queue, tmp_path)
    run.finish()
    entries = read_entries(run.runs_folder)
    assert {(entry.action, entry.by, entry.why) for entry in entries} == {
        ("approved", "bob@example.org", ""),
        ("launched", "ada@example.org", ""),
        ("cancelled", "eve@example.org", "too early"),
        ("deleted", "ada@example.org", ""),
    }
    assert {entry.what for entry in entries} == {f"file://{layer}"}
    assert {(entry.run, entry.stage) for entry in entries} == {("run", "delete")}
    lines = [file.read_text() for file in sorted((tmp_path / "runs/.audit").iterdir())]
    assert all(line.endswith("\n") and line.count("\n") == 1 for line in lines)
