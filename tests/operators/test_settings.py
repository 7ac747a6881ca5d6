"""Where runs and their queues are."""

from pathlib import Path

import pytest
from airflow.configuration import AIRFLOW_HOME

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.settings import queue_url, run_url

pytestmark = pytest.mark.airflow


def test_runs_are_below_the_home_of_airflow_unless_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AIRFLOW__IGNEOUS__STATE")
    assert run_url("dag", "manual__1+00:00", "group").startswith(f"file://{AIRFLOW_HOME}/igneous/")


@pytest.mark.parametrize("state", ["/data/runs", "/data/runs/", "file:///data/runs"])
def test_the_queue_of_a_run_on_disk_is_in_the_folder_of_the_run(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__STATE", state)
    url = run_url("dag", "run", "group")
    assert url.startswith("file:///data/runs/dag_run_group-")
    assert queue_url(url) == f"sqlite://{url.removeprefix('file://')}/queue.db"


def test_the_queue_of_a_run_in_a_bucket_is_on_the_disk_of_airflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__STATE", "s3://bucket/runs")
    url = run_url("dag", "run", "group")
    assert url.startswith("s3://bucket/runs/")
    assert queue_url(url) == f"sqlite://{AIRFLOW_HOME}/igneous/queues/{Path(url).name}.db"


def test_a_state_folder_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__STATE", "runs")
    with pytest.raises(InvalidParameter, match="state = 'runs'"):
        run_url("dag", "run", "group")
