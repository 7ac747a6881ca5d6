"""A real Airflow, used over its REST API as a CI job would: form, refusals, runs, resumption."""

import filecmp
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import yaml
from cloudvolume import CloudVolume
from PIL import Image
from real_airflow import DAG, ROOT, Conf, RealAirflow, ci_job, wait_until

from igneous_airflow.audit_log import read_entries

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
    assert list(params)[:5] == ["layer", "num_mips", "plan_only", "mip", "bounds"]
    assert params["layer"]["value"] is None
    assert params["layer"]["schema"]["type"] == "string"
    assert "section" not in params["layer"]["schema"], "the form opens with it"
    assert params["mip"]["schema"]["section"] == "Where"
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
    assert not list(airflow.runs.glob("*_both-*/queue.db"))


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


def test_a_ci_job_can_ask_for_the_plan_only(airflow: RealAirflow, tmp_path: Path) -> None:
    layer = make_layer(tmp_path / "layer", side=64)
    info = (layer / "info").read_bytes()
    script = (
        'igneous-airflow trigger igneous_downsample layer="$LAYER" plan_only=true --run-id plan'
    )
    done = ci_job(airflow, script, LAYER=str(layer))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "downsample: 1 task (a grid" in done.stdout
    assert "downsample.finish: skipped" in done.stdout
    assert "igneous_downsample plan was only planned, as asked" in done.stdout
    assert (layer / "info").read_bytes() == info


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


def make_sections(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for z in range(4):
        grey = np.random.default_rng(z).integers(0, 255, (90, 100), dtype=np.uint8)
        Image.fromarray(grey).save(folder / f"em_{z}.png")
    return folder


def github_job() -> tuple[list[str], dict[str, str]]:
    """The commands of the example for GitHub, and the environment of the last one."""
    workflow = yaml.safe_load((ROOT / "docs/ci/github-actions.yml").read_text())
    (job,) = workflow["jobs"].values()
    steps = [step for step in job["steps"] if "run" in step]
    return [step["run"] for step in steps], steps[-1]["env"]


def gitlab_job() -> tuple[list[str], dict[str, str]]:
    """The same of the example for GitLab."""
    (job,) = yaml.safe_load((ROOT / "docs/ci/gitlab-ci.yml").read_text()).values()
    return job["script"], job["variables"]


@pytest.mark.parametrize(
    ("job", "given", "run"),
    [
        (github_job, {"GITHUB_RUN_ID": "71", "RESOLUTION": "4,4,40"}, "github-71"),
        (gitlab_job, {"CI_PIPELINE_ID": "72"}, "gitlab-72"),
    ],
)
def test_the_whole_examples_for_ci_ingest_a_volume(
    airflow: RealAirflow,
    tmp_path: Path,
    job: Callable[[], tuple[list[str], dict[str, str]]],
    given: dict[str, str],
    run: str,
) -> None:
    (install, script), environment = job()
    assert install == 'pip install "$IGNEOUS_AIRFLOW"'
    own = {name: value for name, value in environment.items() if "${{" not in value}
    source, layer = make_sections(tmp_path / "sections"), tmp_path / "layer"
    done = ci_job(airflow, script, SOURCE=str(source), LAYER=str(layer), **own, **given)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{run} is done, and proved" in done.stdout
    assert f"View in Neuroglancer: {airflow.base}/igneous/viewer/open/" in done.stdout
    assert airflow.of("igneous_ingest").dag_run(run)["state"] == "success"
    info = json.loads((layer / "info").read_text())
    assert info["scales"][0]["size"] == [100, 90, 4]
    assert info["scales"][0]["resolution"] == [4, 4, 40]


def test_a_dag_that_is_scheduled_on_a_stage_gets_the_layer_it_made(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    example = ROOT / "docs/examples/meshes_of_new_labels.py"
    (airflow.own_dags / example.name).write_text(example.read_text())
    wait_until(lambda: airflow.has("meshes_of_new_labels"), seconds=120)
    source, layer = make_labels(tmp_path / "old", seed=5), tmp_path / "new labels"
    np.save(tmp_path / "map.npy", np.arange(2**10, dtype=np.uint64))
    small = {"driver": "neuroglancer_precomputed", "scale_index": 0}
    store = tensorstore.open({**small, "kvstore": f"file://{source}/"}).result()
    store[:16, :16, :16] = 77  # the map ends before the largest label
    remap = airflow.of("igneous_watershed_remap")
    conf = {"src": str(source), "dest": str(layer), "map_path": f"{tmp_path}/map.npy"}
    remap.trigger("remapped", conf)
    assert remap.end_of("remapped") == "success"

    scheduled, meshes = airflow.of("meshes_of_new_labels"), airflow.of("igneous_mesh")
    wait_until(scheduled.dag_runs, seconds=60)
    (event,) = scheduled.dag_runs()
    assert event["run_type"] == "asset_triggered"
    assert scheduled.end_of(event["dag_run_id"]) == "success"
    started = [run for run in meshes.dag_runs() if run["conf"] == {"layer": f"file://{layer}"}]
    assert len(started) == 1
    assert meshes.end_of(started[0]["dag_run_id"]) == "success"
    assert {path.name for path in layer.glob("mesh_*/*:0")} == labelled(source)


@pytest.mark.services  # a minute; the steps of chains are run by dag.test() in every test run
def test_sections_get_contrast_and_mips_in_one_run(airflow: RealAirflow, tmp_path: Path) -> None:
    image, bright = tmp_path / "image", tmp_path / "bright"
    ingest = airflow.of("igneous_ingest")
    conf = {
        "source": str(make_sections(tmp_path / "sections")), "ingest_dest": str(image),
        "resolution": "4,4,40", "run_contrast": True, "contrast_dest": str(bright),
        "coverage_factor": 1, "clip_fraction": 0.05, "num_mips": 1,
    }  # fmt: skip
    ingest.trigger("bright", conf)
    assert ingest.end_of("bright") == "success"
    stretched = CloudVolume(f"file://{bright}", progress=False, parallel=1)[:]
    assert stretched.shape == (100, 90, 4, 1)
    assert all(stretched[:, :, z].min() == 0 and stretched[:, :, z].max() == 255 for z in range(4))
    coarse = CloudVolume(f"file://{bright}", mip=1, progress=False, parallel=1)[:]
    assert (coarse.shape, coarse.any()) == ((50, 45, 4, 1), True)
    assert len(json.loads((image / "info").read_text())["scales"]) == 1


@pytest.mark.services  # it waits for the scheduler's looks, three minutes in all
def test_what_arrives_in_a_watched_folder_is_ingested_once_and_only_when_it_is_whole(
    airflow: RealAirflow, tmp_path: Path
) -> None:
    arriving, layers = tmp_path / "arriving", tmp_path / "layers"
    for name in ("s1", "s2", "s10"):
        make_sections(arriving / name)
    for name in ("s1", "s2"):
        (arriving / name / "done").touch()
    example = (ROOT / "docs/examples/nightly_ingest.py").read_text()
    own = example.replace('"/data/arriving",', f'"{arriving}", marker="done",')
    own = own.replace('"/data/layers"', f'"{layers}"')
    assert own.count(str(tmp_path)) == 2
    (airflow.own_dags / "nightly_ingest.py").write_text(own)
    wait_until(lambda: airflow.has("nightly_ingest"), seconds=120)
    nightly = airflow.of("nightly_ingest")

    def look(run: str) -> dict[str, int]:
        """Look by hand instead of at night, and give the layers with the times of their chunks."""
        nightly.trigger(run, {})
        assert nightly.end_of(run) == "success"
        return {str(p.relative_to(layers)): p.stat().st_mtime_ns for p in layers.glob("*/4_*/*")}

    def ingested() -> list[str]:
        runs = airflow.of("igneous_ingest").dag_runs()
        mine = [run for run in runs if "nightly_ingest" in run["dag_run_id"]]
        assert {run["state"] for run in mine} == {"success"}
        return sorted(Path(run["conf"]["source"]).name for run in mine)

    first = look("first-night")
    assert {name.partition("/")[0] for name in first} == {"s1", "s2"}
    assert ingested() == ["s1", "s2"]
    (arriving / "s10" / "done").touch()
    second = look("second-night")
    assert first.items() < second.items(), "nothing is ingested twice"
    assert ingested() == ["s1", "s10", "s2"]
    assert look("third-night") == second
    assert ingested() == ["s1", "s10", "s2"]


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
    by_admin = [event for event, who in airflow.audit_log("stopped") if who == "admin"]
    assert by_admin == ["trigger_dag_run", "patch_task_instance", "post_clear_task_instances"]
    launched = [e for e in read_entries(f"file://{airflow.runs}") if "_stopped_" in e.run]
    assert [(e.action, e.by, e.triggered_by["dag_run_id"]) for e in launched] == [
        ("launched", "admin", "stopped")
    ]


def test_a_dag_run_that_is_set_to_failed_ends_failed_and_a_ci_job_resumes_it(
    airflow: RealAirflow, undisturbed: Path, copied: Path
) -> None:
    begin(airflow, "given-up", copied)
    airflow.set_state("given-up", "failed")
    wait_until(lambda: not airflow.workers("given-up"), seconds=60)
    assert airflow.end_of("given-up") == "failed"
    assert airflow.proved("given-up") == set()
    script = f"igneous-airflow trigger {DAG} {values(slow(copied))} --run-id given-up --poll 1"
    failed = ci_job(airflow, script)
    assert failed.returncode == 1
    assert "downsample is not proved" in failed.stderr
    assert "clear the task downsample.enqueue with those after it" in failed.stderr
    receipts = airflow.receipts("given-up")
    resumed = ci_job(airflow, f"{script} --resume")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "given-up is done, and proved" in resumed.stdout
    assert receipts.items() <= airflow.receipts("given-up").items()
    assert_same_bytes(undisturbed / "8_8_40", copied / "8_8_40")


def values(conf: Conf) -> str:
    return " ".join(f"{name}={value}" for name, value in conf.items())


def test_a_deleted_dag_run_proves_nothing_and_one_of_the_same_name_goes_on(
    airflow: RealAirflow, undisturbed: Path, copied: Path
) -> None:
    begin(airflow, "deleted", copied)
    airflow.set_state("deleted", "failed")  # Airflow deletes no DAG run that is running
    wait_until(lambda: airflow.deletes("deleted"), seconds=120)
    wait_until(lambda: not airflow.workers("deleted"), seconds=120)
    assert airflow.proved("deleted") == set()
    receipts = airflow.receipts("deleted")
    assert len(receipts) < 64
    airflow.trigger("deleted", slow(copied))
    assert airflow.end_of("deleted") == "success"
    assert receipts.items() <= airflow.receipts("deleted").items()
    assert airflow.proved("deleted") == {"downsample"}
    assert_same_bytes(undisturbed / "8_8_40", copied / "8_8_40")


@pytest.mark.timeout(600)
def test_work_that_others_finish_completes_a_dag_run_without_its_workers(
    airflow: RealAirflow, undisturbed: Path, copied: Path
) -> None:
    begin(airflow, "helped", copied)
    airflow.call("PATCH", airflow.task("helped", "workers"), {"new_state": "failed"})
    drained = airflow.task("helped", "drained")
    wait_until(lambda: airflow.call("GET", drained)["state"] == "deferred", seconds=60)
    (queue,) = airflow.runs.glob("*_helped_*/queue.db")
    command = [sys.executable, "-m", "igneous_airflow", "worker", f"sqlite://{queue}"]
    command += ["--runs", str(airflow.runs)]
    subprocess.run([*command, "--until-done"], check=True, capture_output=True, timeout=300)
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
    assert not list(airflow.runs.glob("igneous_segmentation_*/queue.db"))


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
