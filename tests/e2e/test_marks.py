"""A real Airflow whose DAG runs people disturb by hand: marked, cleared, set to failed."""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from real_airflow import DAG, ROOT, RealAirflow, ci_job, wait_until

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.layers import LayerSpec, random_voxels, write_layer

pytestmark = [pytest.mark.services, pytest.mark.timeout(1800)]  # minutes, for very many DAG runs

TASKS = ("plan", "enqueue", "workers", "drained", "finish", "proved")
DECIDING = ("workers", "drained", "finish", "proved")
STATES = ("success", "failed", "skipped")


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    """A real Airflow that listens on this machine only."""
    airflow = RealAirflow(tmp_path_factory.mktemp("airflow"))
    try:
        airflow.start()
        yield airflow
    finally:
        airflow.stop()


class Layers:
    """Copies of one small layer, whole or with a chunk missing, so that its run cannot be done."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._whole = folder / "whole"
        write_layer(self._whole, random_voxels(Vec3(33, 17, 9)), LayerSpec())

    def copy(self, name: str, *, broken: bool = False) -> Path:
        layer = self._folder / name
        shutil.copytree(self._whole, layer)
        if broken:
            min(path for path in layer.glob("*/*") if path.is_file()).unlink()
        return layer


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Layers:
    return Layers(tmp_path_factory.mktemp("layers"))


def made(layer: Path) -> dict[str, bytes]:
    """What a run has made: the files of the coarser mips."""
    new = (path for path in layer.glob("*/*") if path.is_file() and path.parent.name != "8_8_40")
    return {str(path.relative_to(layer)): path.read_bytes() for path in new}


@pytest.fixture(scope="module")
def undisturbed(airflow: RealAirflow, layers: Layers) -> dict[str, bytes]:
    """What an undisturbed run makes."""
    layer = layers.copy("undisturbed")
    airflow.trigger("undisturbed", {"layer": str(layer), "num_mips": 1})
    assert airflow.end_of("undisturbed") == "success"
    assert airflow.proved("undisturbed") == {"downsample"}
    files = made(layer)
    assert len(files) > 1
    return files


def pause(airflow: RealAirflow, paused: bool) -> None:
    airflow.call("PATCH", f"/api/v2/dags/{airflow.dag}", {"is_paused": paused})


def work(airflow: RealAirflow, queue: Path) -> None:
    """Work as a machine elsewhere does, until nothing is left."""
    command = [sys.executable, "-m", "igneous_airflow", "worker", f"sqlite://{queue}"]
    command += ["--runs", str(airflow.runs), "--until-done"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def tell(airflow: RealAirflow, runs: Iterable[str]) -> dict[str, str]:
    """Wait for the ends of DAG runs and print them as a table; returns how they ended."""
    ends = {run: airflow.end_of(run) for run in runs}
    for run, end in ends.items():
        proof = "proved" if airflow.proved(run) else "not proved"
        states = " ".join(str(state) for _, state in sorted(airflow.task_states(run).items()))
        sys.stdout.write(f"| {run:<28} | {end:<7} | {proof:<10} | {states}\n")
    return ends


def test_no_mark_set_before_a_dag_run_begins_makes_it_green(
    airflow: RealAirflow, layers: Layers
) -> None:
    runs = {f"before-{task}-{state}": (task, state) for task in TASKS for state in STATES}
    pause(airflow, True)
    for run, (task, state) in runs.items():
        layer = layers.copy(run, broken=True)
        airflow.trigger(run, {"layer": str(layer), "num_mips": 1, "workers": 1})
        airflow.mark(run, task, state)
    pause(airflow, False)
    assert set(tell(airflow, runs).values()) == {"failed"}
    assert not any(map(airflow.proved, runs))


def test_no_mark_set_while_a_dag_run_waits_makes_it_green(
    airflow: RealAirflow, layers: Layers
) -> None:
    """Its workers are elsewhere: none has come when the wait is given up."""
    marks = [(task, state) for task in DECIDING for state in ("success", "skipped")]
    runs = {f"waiting-{task}-{state}": (task, state) for task, state in marks}
    for run in runs:
        conf = {"layer": str(layers.copy(run)), "num_mips": 1, "workers": 0}
        airflow.trigger(run, conf)
    wait_for(airflow, runs)
    for run, (task, state) in runs.items():
        airflow.mark(run, task, state)
    for run, (task, _) in runs.items():
        if task != "drained":
            airflow.mark(run, "drained", "failed")
    assert set(tell(airflow, runs).values()) == {"failed"}
    assert not any(map(airflow.proved, runs))


def wait_for(airflow: RealAirflow, runs: Iterable[str]) -> None:
    """Wait until DAG runs wait for workers elsewhere."""
    drained = "downsample.drained"
    for run in runs:
        wait_until(lambda run=run: airflow.task_states(run)[drained] == "deferred", seconds=600)  # type: ignore[misc]


def test_no_mark_set_after_a_dag_run_has_failed_makes_it_green(
    airflow: RealAirflow, layers: Layers
) -> None:
    marks = [(task, state) for task in DECIDING for state in ("success", "skipped")]
    runs = {f"after-{task}-{state}": (task, state) for task, state in marks}
    for run in runs:
        layer = layers.copy(run, broken=True)
        airflow.trigger(run, {"layer": str(layer), "num_mips": 1, "workers": 1})
    assert {airflow.end_of(run) for run in runs} == {"failed"}
    for run, (task, state) in runs.items():
        airflow.mark(run, task, state)
    assert set(tell(airflow, runs).values()) == {"failed"}
    assert not any(map(airflow.proved, runs))


def test_clearing_any_task_of_a_proved_dag_run_alone_leaves_it_proved(
    airflow: RealAirflow, layers: Layers, undisturbed: dict[str, bytes]
) -> None:
    runs = {f"again-{task}": (task,) for task in TASKS}
    runs |= {"again-all": TASKS, "again-first-two": ("plan", "enqueue")}
    where = {run: layers.copy(run) for run in runs}
    for run, layer in where.items():
        airflow.trigger(run, {"layer": str(layer), "num_mips": 1, "workers": 1})
    assert {airflow.end_of(run) for run in runs} == {"success"}
    for run, tasks in runs.items():
        airflow.clear(run, *tasks, alone=True)
    assert set(tell(airflow, runs).values()) == {"success"}
    for run, layer in where.items():
        assert airflow.proved(run) == {"downsample"}
        assert made(layer) == undisturbed
    assert not list(airflow.runs.glob("*_again-*/queue.db"))


def test_a_dag_run_that_was_set_to_failed_is_not_green_before_it_is_proved(
    airflow: RealAirflow, layers: Layers, undisturbed: dict[str, bytes]
) -> None:
    tasks = ("plan", "enqueue", "workers", "finish", "proved")
    runs = {f"stopped-{task}": task for task in tasks}
    where = {run: layers.copy(run) for run in runs}
    for run, layer in where.items():
        airflow.trigger(run, {"layer": str(layer), "num_mips": 1, "workers": 0})
    wait_for(airflow, runs)
    for run in runs:
        airflow.set_state(run, "failed")
    assert set(tell(airflow, runs).values()) == {"failed"}
    for run, task in runs.items():
        airflow.clear(run, task, alone=True)
    assert set(tell(airflow, runs).values()) == {"failed"}
    for run in runs:
        assert "clear the task downsample.enqueue with those after it" in airflow.log(run, "proved")
    for run in runs:
        airflow.clear(run, "enqueue")
    wait_for(airflow, runs)
    for run in runs:
        (queue,) = airflow.runs.glob(f"{DAG}_{run}_*/queue.db")
        work(airflow, queue)
    assert set(tell(airflow, runs).values()) == {"success"}
    assert all(made(layer) == undisturbed for layer in where.values())


def test_output_that_was_lost_after_the_proof_is_found_missing_when_finish_is_cleared(
    airflow: RealAirflow, layers: Layers, undisturbed: dict[str, bytes]
) -> None:
    layer = layers.copy("lost")
    airflow.trigger("lost", {"layer": str(layer), "num_mips": 1, "workers": 1})
    assert airflow.end_of("lost") == "success"
    lost = layer / min(made(layer))
    lost.unlink()
    airflow.clear("lost", "finish", alone=True)
    assert airflow.end_of("lost") == "failed"
    assert lost.name.removesuffix(".gz") in airflow.log("lost", "finish", attempt=2)
    script = f"igneous-airflow trigger {DAG} layer={layer} num_mips=1 workers=1 --run-id lost"
    failed = ci_job(airflow, script)
    assert failed.returncode == 1
    assert "downsample is not proved" in failed.stderr
    resumed = ci_job(airflow, f"{script} --resume --poll 1")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert made(layer) == undisturbed


def test_trigger_does_not_believe_a_dag_run_that_was_set_to_success(
    airflow: RealAirflow, layers: Layers
) -> None:
    layer = layers.copy("claimed", broken=True)
    script = f"igneous-airflow trigger {DAG} layer={layer} num_mips=1 --run-id claimed --poll 1"
    assert ci_job(airflow, script).returncode == 1
    airflow.set_state("claimed", "success")
    assert airflow.end_of("claimed") == "success"
    done = ci_job(airflow, script)
    assert done.returncode == 1
    assert "ended as a success, but is not proved" in done.stderr
    assert "clear the task downsample.enqueue with those after it" in done.stderr
    assert "--resume" in done.stderr
    assert "is done" not in done.stdout


def chain_conf(layer: Path) -> dict[str, object]:
    return {"layer": str(layer), "num_mips": 1, "mesh_mip": 0, "shape": "32,32,32", "workers": 1}


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels"
    write_layer(path, random_voxels(Vec3(33, 17, 9), "uint32"), LayerSpec("segmentation"))
    return path


def test_a_step_of_a_chain_is_skipped_by_the_form_and_not_by_a_mark(
    airflow: RealAirflow, tmp_path: Path, labels: Path
) -> None:
    chain = airflow.of("igneous_segmentation")
    confs = {
        "chain-off": {"run_downsample": False},
        "chain-planned": {"plan_only": True},
        "chain-marked": {},
        "chain-cleared": {},
    }
    where = {run: tmp_path / run for run in confs}
    pause(chain, True)
    for run, conf in confs.items():
        shutil.copytree(labels, where[run])
        chain.trigger(run, {**chain_conf(where[run]), **conf})
    chain.mark("chain-marked", "downsample.plan", "skipped")
    pause(chain, False)
    assert tell(chain, confs) == {
        "chain-off": "success",
        "chain-planned": "success",
        "chain-marked": "failed",
        "chain-cleared": "success",
    }
    assert chain.proved("chain-off") == {"mesh", "mesh_manifest"}
    assert chain.proved("chain-marked") == set()
    assert "downsample was not planned in this DAG run" in chain.log("chain-marked", "mesh.plan")
    for run, words in (("chain-off", "is done, and proved"), ("chain-planned", "only planned")):
        conf = {**chain_conf(where[run]), **confs[run]}
        values = " ".join(f"{name}={str(value).lower()}" for name, value in conf.items())
        done = ci_job(airflow, f"igneous-airflow trigger {chain.dag} {values} --run-id {run}")
        assert (done.returncode, words in done.stdout) == (0, True), done.stdout + done.stderr

    before = made(where["chain-cleared"])
    first = [f"downsample.{task}" for task in TASKS if task != "proved"]
    chain.clear("chain-cleared", *first, alone=True)
    assert chain.end_of("chain-cleared") == "success"
    assert chain.proved("chain-cleared") == {"downsample", "mesh", "mesh_manifest"}
    assert made(where["chain-cleared"]) == before


def test_a_condition_that_is_not_met_skips_steps_by_request(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    import numpy as np
    import tifffile

    (tmp_path / "stack").mkdir()
    for z in range(3):
        section = np.random.default_rng(z).integers(0, 255, (33, 40), dtype=np.uint8)
        tifffile.imwrite(tmp_path / "stack" / f"{z}.tif", section)
    ingest = airflow.of("igneous_ingest")
    values = (
        f"source={tmp_path}/stack ingest_dest={tmp_path}/image resolution=8,8,40 num_mips=1 "
        "workers=1"
    )
    done = ci_job(airflow, f"igneous-airflow trigger {ingest.dag} {values} --run-id image --poll 1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "image is done, and proved" in done.stdout
    assert ingest.proved("image") == {"ingest", "downsample"}


def test_tasks_of_ones_own_after_a_stage_start_only_when_it_is_proved(
    airflow: RealAirflow, layers: Layers
) -> None:
    shutil.copy(ROOT / "docs/examples/own_tasks.py", airflow.own_dags)
    wait_until(lambda: airflow.has("own_tasks"), seconds=240)
    own = airflow.of("own_tasks")
    marks = [(task, state) for task in DECIDING for state in ("success", "skipped")]
    runs = {f"own-{task}-{state}": (task, state) for task, state in marks}
    for run in [*runs, "own-stopped", "own-done"]:
        own.trigger(run, {"layer": str(layers.copy(run)), "workers": 0})
    wait_for(own, [*runs, "own-stopped", "own-done"])
    for run, (task, state) in runs.items():
        own.mark(run, task, state)
    for run, (task, _) in runs.items():
        if task != "drained":
            own.mark(run, "drained", "failed")
    own.set_state("own-stopped", "failed")
    assert set(tell(own, [*runs, "own-stopped"]).values()) == {"failed"}
    for run in [*runs, "own-stopped"]:
        assert own.task_states(run)["tell"] in ("upstream_failed", "skipped")
    (queue,) = airflow.runs.glob("own_tasks_own-done_*/queue.db")
    work(airflow, queue)
    assert own.end_of("own-done") == "success"
    assert own.task_states("own-done")["tell"] == "success"
