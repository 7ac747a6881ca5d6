"""What people see of runs is what their folders say, however many there are."""

import time
from pathlib import Path

import pytest

from igneous_airflow import overview as overview_module
from igneous_airflow.errors import RunNotFound
from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.ledger import Failure
from igneous_airflow.overview import Filters, Overview, layers_of
from igneous_airflow.progress import group_errors
from igneous_airflow.receipts import Receipt
from igneous_airflow.run import Run
from igneous_airflow.stage import Work
from igneous_airflow.stages.downsample import Downsample
from igneous_airflow.stages.luminance_levels import LuminanceLevels
from igneous_airflow.stages.transfer import Transfer
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer
from igneous_airflow.worker.loop import Worker, WorkerOptions

ANY = Filters()


@pytest.fixture(autouse=True)
def always_fresh(monkeypatch):
    """Let nothing be answered from what was seen before."""
    monkeypatch.setattr(overview_module, "_FRESH", 0.0)
    monkeypatch.setattr(overview_module, "_RECORDS_FRESH", {"on disk": 0.0, "in a bucket": 0.0})


@pytest.fixture
def layer(tmp_path):
    """A layer of 4 tasks that make one mip."""
    return write_layer(tmp_path / "layer", random_voxels(Vec3(64, 16, 8)))


@pytest.fixture
def state(tmp_path):
    return f"file://{tmp_path}/state"


@pytest.fixture
def launch(state, layer):
    def launch(name, stage=None, **origin):
        run, _ = Run.launch(
            stage or Downsample(layer=layer, num_mips=1),
            url=f"{state}/{name}",
            queue=f"sqlite://{state.removeprefix('file://')}/{name}/queue.db",
            by="somebody@example.org",
            triggered_by=origin,
        )
        return run

    return launch


def rows(state, filters=ANY, offset=0, limit=100, may_read=lambda run: True):
    return Overview(state).rows(filters, offset, limit, may_read)


def receipt(task, voxels=1000):
    return Receipt(task=task, attempt=1, seconds=1, worker="host:1", work=Work(voxels=voxels))


def failure(task, attempt=1, error="MissingChunk: chunk 0-8 is missing", **changes):
    given = {"final": False, "at": "2020-01-01T00:00:00+00:00"} | changes
    return Failure(
        task=task, attempt=attempt, error=error, traceback="Traceback", worker="host:1", **given
    )


def test_a_folder_without_runs_has_none(tmp_path):
    assert rows(f"file://{tmp_path}/nothing") == ([], 0)
    assert Overview(f"file://{tmp_path}").stages(lambda run: True) == []


def test_runs_come_newest_first_in_pages_with_their_number(launch, state, layer):
    for number in range(5):
        launch(f"run-{number}")
    found, total = rows(state, offset=1, limit=2)
    assert [row.name for row in found] == ["run-3", "run-2"]
    assert total == 5
    assert found[0].stage == "downsample"
    assert found[0].layer == layer
    assert (found[0].done, found[0].planned) == (0, 4)


def test_what_is_no_run_is_left_out(launch, state, tmp_path):
    launch("run")
    (tmp_path / "state" / "other").mkdir()
    (tmp_path / "state" / "broken").mkdir()
    (tmp_path / "state" / "broken" / "run.json").write_text("{")
    (tmp_path / "state" / "file").write_text("")
    assert [row.name for row in rows(state)[0]] == ["run"]


def test_runs_are_filtered_by_layer_stage_state_and_permission(launch, state, layer, tmp_path):
    launch("one", dag_id="a")
    launch("two", Transfer(src=layer, dest=f"{tmp_path}/Copy"), dag_id="b")
    assert [row.name for row in rows(state, Filters(layer="copy"))[0]] == ["two"]
    assert [row.name for row in rows(state, Filters(stage="downsample"))[0]] == ["one"]
    assert rows(state, Filters(state="done")) == ([], 0)
    assert rows(state, Filters(state="waiting"))[1] == 2
    assert [
        r.name for r in rows(state, may_read=lambda run: run.triggered_by["dag_id"] == "b")[0]
    ] == ["two"]
    assert Overview(state).stages(lambda run: True) == ["downsample", "transfer"]


def test_a_run_goes_through_its_states(launch, state):
    run = launch("run")
    overview = Overview(state)

    def state_now():
        return overview.detail("run").state

    assert state_now() == "waiting"
    run.require_approval("why")
    assert (state_now(), overview.detail("run").why_it_waits) == ("planned", "why")
    assert [row.name for row in overview.rows(Filters(state="planned"), 0, 9, lambda _: True)[0]]
    run.approve("somebody")
    assert (state_now(), overview.detail("run").why_it_waits) == ("waiting", "")
    run.ledger.note_worker("host:1", 2)
    assert state_now() == "working"
    run.ledger.forget_worker("host:1")
    run.ledger.write_receipt(receipt(0))
    assert state_now() == "interrupted"
    run.ledger.write_failure(failure(1, final=True))
    assert state_now() == "failed"
    run.prepare()
    run.enqueue()
    for task in range(4):
        run.ledger.withdraw([task])
    queue = run.open_queue()
    run.enqueue()
    Worker(
        queue,
        run.runs_folder,
        WorkerOptions(idle_seconds=0.01, until_done=True),
        lambda event: None,
    ).work()
    queue.close()
    run.finish()
    assert state_now() == "done"
    detail = overview.detail("run")
    assert detail.done == detail.planned == 4
    assert detail.summary is not None
    assert detail.seconds == detail.summary.seconds
    assert detail.workers == ()


def test_a_worker_that_fell_silent_is_not_shown(launch, state, monkeypatch):
    run = launch("run")
    run.ledger.note_worker("host:1", 2)
    run.ledger.note_worker("host:2", None)
    assert [(w.worker, w.task) for w in Overview(state).detail("run").workers] == [
        ("host:1", 2),
        ("host:2", None),
    ]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    assert Overview(state).detail("run").workers == ()


def test_errors_that_differ_by_numbers_are_put_together(launch, state):
    run = launch("run")
    for task in range(3):
        run.ledger.write_failure(
            failure(task, error=f"MissingChunk: chunk {task}-8", at=f"2020-01-0{task + 1}")
        )
    run.ledger.write_failure(failure(3, 2, error="AccessDenied: no"))
    detail = Overview(state).detail("run")
    assert detail.failed_attempts == detail.errors_read == 4
    assert [(g.count, g.message) for g in detail.errors] == [
        (3, "MissingChunk: chunk 2-8"),
        (1, "AccessDenied: no"),
    ]
    assert detail.errors[0].first_task == 0
    assert (detail.errors[0].task, detail.errors[0].last_seen) == (2, "2020-01-03")
    found = Overview(state).failure("run", 3, 2)
    assert found.traceback == "Traceback"
    with pytest.raises(RunNotFound, match="attempt 1 at task 3"):
        Overview(state).failure("run", 3, 1)


def test_no_errors_make_no_groups():
    assert list(group_errors([])) == []


def test_pace_and_time_left_come_from_what_was_seen(launch, state, monkeypatch):
    run = launch("run")
    overview = Overview(state)
    assert overview.detail("run").tasks_per_second is None
    assert overview.detail("run").seconds_left is None
    for task in (0, 1):
        run.ledger.write_receipt(receipt(task, voxels=500))
    run.ledger.note_worker("host:1", 2)
    monkeypatch.setattr(time, "time", lambda: run.created + 20)
    detail = overview.detail("run")
    assert detail.tasks_per_second == pytest.approx(2 / 20, rel=0.1)
    assert detail.voxels_per_second == pytest.approx(1000 / 20, rel=0.1)
    assert detail.seconds_left == pytest.approx(20, rel=0.1)
    run.ledger.forget_worker("host:1")
    assert Overview(state).detail("run").seconds_left is None  # nobody works on it


@pytest.mark.parametrize("name", ["nobody", "../state/run", "run/..", "", ".", "run/done"])
def test_a_name_that_is_no_run_is_refused(launch, state, name):
    launch("run")
    with pytest.raises(RunNotFound, match="no run"):
        Overview(state).run(name)


def test_the_layer_that_a_run_makes_comes_last(launch, layer, tmp_path):
    run = launch("two", Transfer(src=layer, dest=f"{tmp_path}/copy"))
    assert list(layers_of(run).items()) == [("src", layer), ("dest", f"file://{tmp_path}/copy")]


def test_what_cannot_change_is_read_once(launch, state, monkeypatch):
    run = launch("run")
    run.ledger.write_failure(failure(0))
    overview = Overview(state)
    overview.detail("run")
    monkeypatch.setattr("igneous_airflow.ledger.Ledger.failure", None)
    assert overview.detail("run").failed_attempts == 1


def test_a_run_that_starts_anew_is_seen_anew(launch, state):
    run = launch("run")
    for task in range(4):
        run.ledger.write_receipt(receipt(task))
    overview = Overview(state)
    assert overview.detail("run").done == 4
    run.ledger.forget_everything()
    assert overview.detail("run").done == 0


def test_runs_in_a_bucket_are_seen_too(layer):
    state = f"mem://overview/{Path(layer).parent.name}"
    for name in ("one", "two"):
        Run.launch(
            Downsample(layer=layer, num_mips=1), url=f"{state}/{name}", queue="memory://q", by="me"
        )
    assert {row.name for row in rows(state)[0]} == {"one", "two"}


def write_labels(path, **spec):
    voxels = random_voxels(Vec3(16, 16, 8), "uint64")
    return write_layer(path, voxels, LayerSpec("segmentation", **spec))


def test_the_image_beside_a_segmentation_is_shown_beneath_it(launch, state, layer, tmp_path):
    image = launch("image", dag_id="a")
    labels = launch("labels", Downsample(layer=write_labels(tmp_path / "labels"), num_mips=1))
    overview = Overview(state)
    assert overview.image_beneath(labels, lambda run: True) is None, "the image was only planned"
    image.prepare()
    assert overview.image_beneath(labels, lambda run: True) == ("image", "layer", layer)
    assert overview.image_beneath(labels, lambda run: run.triggered_by.get("dag_id") != "a") is None
    assert overview.image_beneath(overview.run("image"), lambda run: True) is None


@pytest.mark.parametrize(
    ("path", "offset"), [("elsewhere/labels", (0, 0, 0)), ("labels", (64, 0, 0))]
)
def test_an_image_of_another_folder_or_place_is_not(launch, state, tmp_path, path, offset):
    launch("image").prepare()
    labels = write_labels(tmp_path / path, voxel_offset=offset)
    run = launch("labels", Downsample(layer=labels, num_mips=1))
    assert Overview(state).image_beneath(run, lambda run: True) is None


def test_a_run_counts_as_launched_once_its_work_was_allowed_to_begin(launch, state, monkeypatch):
    monkeypatch.setattr(overview_module, "_RECORDS_FRESH", {"on disk": 60.0, "in a bucket": 60.0})
    run, overview = launch("run"), Overview(state)
    assert overview.launched("run") is None
    assert overview.detail("run").was_launched is False
    run.prepare()
    launched = overview.launched("run")
    assert launched is not None
    assert launched.id == "run"
    with pytest.raises(RunNotFound):
        overview.launched("none")


def test_the_stages_are_those_of_runs_that_may_be_read(launch, state, layer, tmp_path):
    launch("shown", dag_id="a")
    launch("hidden", Transfer(src=layer, dest=f"file://{tmp_path}/copy"), dag_id="b")
    overview = Overview(state)
    assert overview.stages(lambda run: run.triggered_by["dag_id"] == "a") == ["downsample"]
    assert overview.stages(lambda run: True) == ["downsample", "transfer"]


def test_files_that_are_no_layers_are_not_shown(launch, state, layer, tmp_path):
    levels = LuminanceLevels(layer=layer, levels_path=f"{tmp_path}/levels")
    assert layers_of(launch("levels", levels)) == {"layer": layer}
