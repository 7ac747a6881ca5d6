"""Which workers a run gets, and whether they could work at all."""

from pathlib import Path

import pytest

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.crew import MOST_PODS, crew, require_workable
from igneous_airflow.operators.params import RunOptions
from igneous_airflow.stages.transfer import Transfer

pytestmark = pytest.mark.airflow


def pods(workers: int, **options: float) -> RunOptions:
    return RunOptions(run_on="kubernetes", workers=workers, **options)


def test_local_processes_are_one_task_however_many() -> None:
    assert crew(RunOptions(workers=8), 1000) == ["local"]


def test_nobody_is_named_where_no_worker_is_to_start() -> None:
    assert crew(RunOptions(), 0) == crew(pods(3), 0) == ["nobody"]
    assert crew(RunOptions(workers=0), 10) == crew(pods(0), 10) == ["nobody"]


def test_each_pod_is_a_task_until_they_are_too_many_for_that() -> None:
    assert crew(pods(3), 1000) == ["pod 1 of 3", "pod 2 of 3", "pod 3 of 3"]
    assert len(crew(pods(MOST_PODS), 1000)) == MOST_PODS
    assert crew(pods(MOST_PODS + 1), 1000) == ["job of 51 pods"]


def test_no_pod_is_started_that_would_find_no_task() -> None:
    assert len(crew(pods(40), 7)) == 7
    assert len(crew(pods(40, pod_cpus=4), 7)) == 2, "a pod has a process for each CPU"


def test_a_run_may_be_elsewhere_than_the_configuration_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__WORKERS", "kubernetes")
    assert crew(RunOptions(), 1) == ["pod 1 of 1"]
    assert crew(RunOptions(run_on="local"), 1) == ["local"]
    monkeypatch.setenv("AIRFLOW__IGNEOUS__WORKERS", "local")
    assert crew(RunOptions(run_on="kubernetes"), 1) == ["pod 1 of 1"]


def test_a_place_that_there_is_not_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__WORKERS", "moon")
    with pytest.raises(InvalidParameter, match=r"'moon' .* write local or kubernetes"):
        crew(RunOptions(), 1)


def test_too_many_processes_for_one_machine_are_refused(tmp_path: Path) -> None:
    stage = Transfer(src=f"{tmp_path}/a", dest=f"{tmp_path}/b")
    require_workable(RunOptions(workers=64), stage, ())
    with pytest.raises(InvalidParameter, match="65 processes on one machine are too many"):
        require_workable(RunOptions(workers=65), stage, ())


@pytest.mark.parametrize("local", ["queue", "run", "src", "dest"])
def test_pods_are_refused_a_place_on_this_machine(local: str) -> None:
    address = {
        "queue": "sqs://tasks",
        "run": "s3://bucket/runs/one",
        "src": "s3://bucket/layer",
        "dest": "gs://bucket/copy",
    }

    def require(addresses: dict[str, str]) -> None:
        stage = Transfer(src=addresses["src"], dest=addresses["dest"])
        require_workable(pods(1), stage, (addresses["run"], addresses["queue"]))

    require(address)
    here = "sqlite:///srv/queue.db" if local == "queue" else "file:///srv/here"
    with pytest.raises(InvalidParameter, match=f"worker pods cannot reach {here}: use a bucket"):
        require({**address, local: here})


def test_a_folder_that_the_template_mounts_can_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(
        """
spec:
  containers:
    - name: worker
      volumeMounts: [{name: shared, mountPath: /srv}, {name: tmp, mountPath: /tmp}]
  volumes:
    - name: shared
      persistentVolumeClaim: {claimName: shared}
    - name: tmp
      emptyDir: {}
"""
    )
    monkeypatch.setenv("AIRFLOW__IGNEOUS__POD_TEMPLATE", str(template))
    stage = Transfer(src="file:///srv/a", dest="file:///srv/b")
    require_workable(pods(1), stage, ("file:///srv/runs/one", "sqlite:///srv/queue.db"))
    for elsewhere in ("file:///srvs/one", "file:///tmp/one"):
        with pytest.raises(InvalidParameter, match=elsewhere):
            require_workable(pods(1), stage, (elsewhere,))
