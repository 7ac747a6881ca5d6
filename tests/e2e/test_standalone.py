"""A real Airflow, used over its REST API as a CI job would: form, refusals, runs, resumption."""

import filecmp
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from real_airflow import DAG, ROOT, Conf, RealAirflow, wait_until

pytestmark = [pytest.mark.standalone, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def airflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    """A real Airflow that listens on this machine only."""
    airflow = RealAirflow(tmp_path_factory.mktemp("airflow"))
    try:
        airflow.start()
        yield airflow
    finally:
        airflow.stop()


def make_layer(path: Path, side: int = 256, seed: int = 0) -> Path:
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {"data_type": "uint8", "num_channels": 1, "type": "image"},
            "scale_metadata": {
                "size": [side, side, 64],
                "resolution": [4, 4, 40],
                "chunk_size": [64, 64, 64],
                "encoding": "raw",
            },
        },
        create=True,
    ).result()
    store[...] = np.random.default_rng(seed).integers(1, 255, store.shape, dtype=np.uint8)
    return path


def slow(layer: Path) -> Conf:
    """Parameters with which 64 tasks take about ten seconds: compressing takes the time."""
    return {"layer": str(layer), "num_mips": 1, "compress": "br", "compress_level": 11}


def assert_same_bytes(left: Path, right: Path) -> None:
    names = sorted(path.name for path in left.iterdir())
    assert names == sorted(path.name for path in right.iterdir())
    assert filecmp.cmpfiles(left, right, names, shallow=False) == (names, [], [])


def test_servers_listen_on_this_machine_only(airflow: RealAirflow) -> None:
    mine = {f"socket:[{line.split()[9]}]": line.split()[1] for line in _listening()}
    found = set()
    for process in airflow.processes():
        for descriptor in Path(f"/proc/{process}/fd").glob("*"):
            with suppress(OSError):  # it has ended
                found.add(mine.get(str(descriptor.readlink()), ""))
    assert {address.partition(":")[0] for address in found - {""}} == {"0100007F"}


def _listening() -> list[str]:
    lines: list[str] = []
    for table in ("tcp", "tcp6"):
        lines += Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[3] == "0A"]


def test_the_form_shows_the_fields_of_the_stage(airflow: RealAirflow) -> None:
    params = airflow.call("GET", f"/api/v2/dags/{DAG}/details")["params"]
    assert list(params)[:4] == ["layer", "mip", "bounds", "num_mips"]
    assert params["layer"]["value"] is None
    assert params["layer"]["schema"]["type"] == "string"
    assert params["layer"]["schema"]["section"] == "Where"
    assert params["mip"]["schema"]["minimum"] == -1
    assert params["mip"]["description"]
    assert params["encoding"]["schema"]["enum"][-1] is None
    assert params["encoding"]["schema"]["type"] == ["string", "null"]
    assert params["workers"]["value"] == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("mip", -9), ("num_mips", "many"), ("method", "guess"), ("factor", [2, 2]), ("workers", -1)],
)
def test_a_wrong_value_is_refused_before_anything_starts(
    airflow: RealAirflow, field: str, value: object
) -> None:
    words = airflow.refusal({"layer": "/data/layer", field: value})
    assert f"Invalid input for param {field}" in words
    assert str(value if not isinstance(value, list) else value[0]) in words


def test_a_missing_layer_is_asked_for(airflow: RealAirflow) -> None:
    assert "Invalid input for param layer" in airflow.refusal({"mip": 0})


def test_two_runs_on_two_layers_at_once_do_not_disturb_each_other(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    layers = {f"both-{seed}": make_layer(tmp_path / str(seed), seed=seed) for seed in (1, 2)}
    for run, layer in layers.items():
        airflow.trigger(run, {"layer": str(layer), "num_mips": 1, "workers": 1})
    assert [airflow.end_of(run) for run in layers] == ["success", "success"]
    first, second = (airflow.dag_run(run) for run in layers)
    assert first["end_date"] > second["start_date"]
    assert second["end_date"] > first["start_date"]
    for run, layer in layers.items():
        assert airflow.xcom(run, "plan")["plan"]["tasks"] == 4
        summary = airflow.xcom(run, "finish")
        assert summary["tasks"] == 4
        assert summary["audit"]["outputs"] == {"8_8_40": 4}
        assert len(list((layer / "8_8_40").iterdir())) == 4
        assert '"by": "admin"' in (layer / "provenance").read_text()
    assert not list(airflow.runs.glob("*/queue.db"))


def test_the_logs_tell_the_story(airflow: RealAirflow, tmp_path: Path) -> None:
    airflow.trigger("story", {"layer": str(make_layer(tmp_path / "layer")), "num_mips": 1})
    assert airflow.end_of("story") == "success"
    assert "downsample: 4 tasks (a grid of 2,2,1 cells" in airflow.log("story", "plan")
    assert "Sent 4 of 4 tasks" in airflow.log("story", "enqueue")
    working = airflow.log("story", "workers")
    assert "0.0 % done: 0 of 4 tasks" in working
    assert "100.0 % done: 4 of 4 tasks" in working
    assert len(re.findall("outcome=done", working)) == 4
    assert "all 4 tasks are done and 4 chunks were found" in airflow.log("story", "finish")


def ci_job(airflow: RealAirflow, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a script as a CI job would, with the secrets in its environment."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AIRFLOW_URL": airflow.base,
        "AIRFLOW_USER": "admin",
        "AIRFLOW_PASSWORD": "admin",
        "no_proxy": "127.0.0.1",
        **variables,
    }
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_the_example_for_ci_in_the_readme_works(airflow: RealAirflow, tmp_path: Path) -> None:
    (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    layer = make_layer(tmp_path / "layer", side=64)
    done = ci_job(airflow, script, RUN_ID="from-ci", LAYER=str(layer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "downsample.finish: success" in done.stdout
    assert "100.0 % done: 1 of 1 tasks" in done.stdout
    assert "from-ci is done, and proved" in done.stdout
    assert airflow.xcom("from-ci", "finish")["audit"]["outputs"] == {"8_8_40": 1, "16_16_40": 1}

    again = ci_job(airflow, script, RUN_ID="from-ci", LAYER=str(layer))
    assert again.returncode == 0
    assert "was started before" in again.stdout
    other = ci_job(airflow, script, RUN_ID="from-ci", LAYER="/data/other")
    assert other.returncode == 1
    assert "other values for layer" in other.stderr


def test_a_ci_job_fails_with_the_reason_and_may_resume(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    layer = make_layer(tmp_path / "layer", side=128)
    chunk = layer / "4_4_40" / "0-64_64-128_0-64"
    content = chunk.read_bytes()
    chunk.unlink()
    script = f"igneous-airflow trigger {DAG} layer=$LAYER num_mips=1 --run-id ci-mended --poll 1"
    failed = ci_job(airflow, script, LAYER=str(layer))
    assert failed.returncode == 1
    assert "0-64_64-128_0-64" in failed.stdout
    assert f"look at {airflow.base}/dags/{DAG}/runs/ci-mended" in failed.stderr
    assert ci_job(airflow, script, LAYER=str(layer)).returncode == 1

    chunk.write_bytes(content)
    mended = ci_job(airflow, f"{script} --resume", LAYER=str(layer))
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert airflow.xcom("ci-mended", "finish")["audit"]["outputs"] == {"8_8_40": 1}


def test_a_ci_job_hears_what_is_wrong_with_its_parameters_or_account(airflow: RealAirflow) -> None:
    script = f"igneous-airflow trigger {DAG} layer=/data/layer mip=-9 --run-id ci-wrong"
    wrong = ci_job(airflow, script)
    assert wrong.returncode == 1
    assert "param mip" in wrong.stderr
    stranger = ci_job(airflow, script, AIRFLOW_PASSWORD="guessed")
    assert stranger.returncode == 1
    assert "check AIRFLOW_USER and AIRFLOW_PASSWORD" in stranger.stderr
    assert "guessed" not in stranger.stdout + stranger.stderr
    nobody = ci_job(airflow, script, AIRFLOW_USER="", AIRFLOW_PASSWORD="")
    assert nobody.returncode == 1
    assert "set AIRFLOW_USER and AIRFLOW_PASSWORD, or AIRFLOW_TOKEN" in nobody.stderr


def test_clearing_a_failed_task_goes_on_where_it_stopped(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    layer = make_layer(tmp_path / "layer")
    chunk = layer / "4_4_40" / "64-128_64-128_0-64"
    content = chunk.read_bytes()
    chunk.unlink()
    airflow.trigger("mended", {"layer": str(layer), "num_mips": 1})
    assert airflow.end_of("mended") == "failed"
    for task in ("workers", "drained"):
        words = airflow.log("mended", task)
        assert "1 of 4 tasks" in words
        assert "64-128_64-128_0-64" in words
    receipts = airflow.receipts("mended")
    assert len(receipts) == 3

    chunk.write_bytes(content)
    airflow.clear("mended", "workers")
    assert airflow.end_of("mended") == "success"
    assert receipts.items() <= airflow.receipts("mended").items()
    assert airflow.xcom("mended", "finish")["tasks"] == 4


@pytest.fixture(scope="module")
def undisturbed(airflow: RealAirflow, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A layer of 64 tasks with its new mip, made without any trouble."""
    layer = make_layer(tmp_path_factory.mktemp("undisturbed") / "layer", side=1024)
    airflow.trigger("undisturbed", slow(layer))
    assert airflow.end_of("undisturbed") == "success"
    return layer


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> Path:
    """The same layer without the new mip."""
    return make_layer(tmp_path / "layer", side=1024)


def begin(airflow: RealAirflow, run: str, layer: Path) -> None:
    """Trigger a slow run and wait until its workers are in the middle of it."""
    airflow.trigger(run, slow(layer))
    wait_until(lambda: len(airflow.receipts(run)) >= 3, seconds=120)
    assert len(airflow.receipts(run)) < 50
    assert airflow.workers(run)


def test_a_killed_task_is_retried_and_leaves_the_same_bytes(
    airflow: RealAirflow, undisturbed: Path, copied: Path
) -> None:
    begin(airflow, "killed", copied)
    (command,) = airflow.workers("killed")
    task = int(re.findall(r"PPid:\t(\d+)", Path(f"/proc/{command}/status").read_text())[0])
    os.kill(task, signal.SIGKILL)
    wait_until(lambda: not airflow.workers("killed"), seconds=10)
    receipts = airflow.receipts("killed")
    assert len(receipts) < 64
    assert airflow.end_of("killed") == "success"
    assert receipts.items() <= airflow.receipts("killed").items()
    assert airflow.call("GET", airflow.task("killed", "workers"))["try_number"] == 2
    assert_same_bytes(undisturbed / "8_8_40", copied / "8_8_40")


def test_marking_the_workers_as_failed_stops_them_and_clearing_resumes(
    airflow: RealAirflow, undisturbed: Path, copied: Path
) -> None:
    begin(airflow, "stopped", copied)
    airflow.call("PATCH", airflow.task("stopped", "workers"), {"new_state": "failed"})
    wait_until(lambda: not airflow.workers("stopped"), seconds=30)
    assert len(airflow.receipts("stopped")) < 64
    airflow.clear("stopped", "workers")
    assert airflow.end_of("stopped") == "success"
    assert_same_bytes(undisturbed / "8_8_40", copied / "8_8_40")


def test_work_that_others_finish_completes_a_dag_run_without_its_workers(
    airflow: RealAirflow, undisturbed: Path, copied: Path
) -> None:
    begin(airflow, "helped", copied)
    airflow.call("PATCH", airflow.task("helped", "workers"), {"new_state": "failed"})
    drained = airflow.task("helped", "drained")
    wait_until(lambda: airflow.call("GET", drained)["state"] == "deferred", seconds=60)
    (queue,) = airflow.runs.glob("*_helped_*/queue.db")
    command = [sys.executable, "-m", "igneous_airflow", "worker", f"sqlite://{queue}"]
    subprocess.run([*command, "--until-done"], check=True, capture_output=True, timeout=120)
    assert airflow.end_of("helped") == "success"
    assert airflow.call("GET", airflow.task("helped", "workers"))["state"] == "failed"
    assert_same_bytes(undisturbed / "8_8_40", copied / "8_8_40")


def make_labels(path: Path, seed: int) -> Path:
    """Write a segmentation of blocks, one of which is labelled above what a double can hold."""
    store = tensorstore.open(
        {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{path}/"},
            "multiscale_metadata": {
                "data_type": "uint64",
                "num_channels": 1,
                "type": "segmentation",
            },
            "scale_metadata": {
                "size": [64, 64, 32],
                "resolution": [16, 16, 40],
                "chunk_size": [32, 32, 32],
                "encoding": "raw",
            },
        },
        create=True,
    ).result()
    labels = np.random.default_rng(seed).integers(1, 30, (4, 4, 2, 1), dtype=np.uint64)
    labels[0, 0, 0] = 2**60 + 1
    store[...] = labels.repeat(16, 0).repeat(16, 1).repeat(16, 2)
    return path


def labelled(layer: Path) -> set[str]:
    """The names of the manifests that a layer should have."""
    kvstore = {"driver": "file", "path": f"{layer}/"}
    spec = {"driver": "neuroglancer_precomputed", "kvstore": kvstore, "scale_index": 0}
    return {f"{label}:0" for label in np.unique(tensorstore.open(spec).result().read().result())}


def manifests(layer: Path) -> set[str]:
    return {path.name for path in layer.glob("mesh_mip_0_err_40/*:0")}


STEPS = ("downsample", "mesh", "mesh_manifest")


def test_two_chains_at_once_do_not_disturb_each_other_and_skip_what_is_off(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    chain = airflow.of("igneous_segmentation")
    whole, part = (make_labels(tmp_path / name, seed) for seed, name in enumerate("ab"))
    meshes = {"mesh_mip": 0, "shape": "32,32,32", "workers": 1}
    chain.trigger("whole", {"layer": str(whole), "num_mips": 1, **meshes})
    chain.trigger("part", {"layer": str(part), "run_downsample": False, **meshes})
    assert [chain.end_of(run) for run in ("whole", "part")] == ["success", "success"]
    assert [chain.states("whole", step) for step in STEPS] == [{"success"}] * 3
    assert [chain.states("part", step) for step in STEPS] == [{"skipped"}, {"success"}, {"success"}]
    assert len(json.loads((whole / "info").read_text())["scales"]) == 2
    assert len(json.loads((part / "info").read_text())["scales"]) == 1
    for layer in (whole, part):
        assert manifests(layer) == labelled(layer)
    assert chain.xcom("whole", "mesh.finish")["audit"]["files"] == "fragments"
    assert not list(airflow.runs.glob("*/queue.db"))


def test_a_failed_step_stops_a_chain_and_clearing_it_goes_on_to_the_end(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    chain = airflow.of("igneous_mesh")
    layer = make_labels(tmp_path / "layer", seed=3)
    chunk = layer / "16_16_40" / "32-64_32-64_0-32"
    content = chunk.read_bytes()
    chunk.unlink()
    chain.trigger("stopped-chain", {"layer": str(layer), "shape": "32,32,32"})
    assert chain.end_of("stopped-chain") == "failed"
    assert chain.states("stopped-chain", "mesh_manifest") == {"upstream_failed"}
    assert "32-64_32-64_0-32" in chain.log("stopped-chain", "mesh.workers")
    assert manifests(layer) == set()
    receipts = airflow.receipts("stopped-chain")

    chunk.write_bytes(content)
    chain.clear("stopped-chain", "mesh.workers")
    assert chain.end_of("stopped-chain") == "success"
    assert receipts.items() <= airflow.receipts("stopped-chain").items()
    assert manifests(layer) == labelled(layer)


def test_a_wrong_value_of_a_late_step_is_refused_when_a_chain_is_triggered(
    airflow: RealAirflow,
) -> None:
    words = airflow.of("igneous_segmentation").refusal({"layer": "/data/layer", "magnitude": 77})
    assert "Invalid input for param magnitude" in words
