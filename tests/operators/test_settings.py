"""Where runs and their queues are."""

import json
from pathlib import Path

import pytest
from airflow.configuration import AIRFLOW_HOME

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.settings import queue_url, run_url
from igneous_airflow.queue.protocol import open_queue

pytestmark = pytest.mark.airflow


def test_runs_are_below_the_home_of_airflow_unless_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AIRFLOW__IGNEOUS__RUNS")
    assert run_url("dag", "manual__1+00:00", "group").startswith(f"file://{AIRFLOW_HOME}/igneous/")


@pytest.mark.parametrize("state", ["/data/runs", "/data/runs/", "file:///data/runs"])
def test_the_queue_of_a_run_on_disk_is_in_the_folder_of_the_run(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__RUNS", state)
    url = run_url("dag", "run", "group")
    assert url.startswith("file:///data/runs/dag_run_group-")
    assert queue_url(url) == (f"sqlite://{url.removeprefix('file://')}/queue.db", True)


def test_the_queue_of_a_run_in_a_bucket_is_on_the_disk_of_airflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__RUNS", "s3://bucket/runs")
    url = run_url("dag", "run", "group")
    assert url.startswith("s3://bucket/runs/")
    path = f"{AIRFLOW_HOME}/igneous/queues/{Path(url).name}.db"
    assert queue_url(url) == (f"sqlite://{path}", True)


def test_a_runs_folder_that_is_no_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__RUNS", "runs")
    with pytest.raises(InvalidParameter, match="runs = 'runs'"):
        run_url("dag", "run", "group")


RUN = "s3://bucket/runs/dag_run_group-12345678"


@pytest.fixture
def connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection with a region and an endpoint of SQS."""
    extra = {
        "region_name": "eu-west-1",
        "service_config": {"sqs": {"endpoint_url": "http://127.0.0.1:9324"}},
    }
    value = {"conn_type": "aws", "login": "key", "password": "a secret", "extra": extra}
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(value))


@pytest.mark.usefixtures("connection")
@pytest.mark.parametrize(
    ("asked", "url", "own"),
    [
        (
            "sqs",
            "sqs://igneous-dag_run_group-12345678?region=eu-west-1&endpoint=http://127.0.0.1:9324",
            True,
        ),
        (
            "sqs?region=us-east-2&endpoint=https://sqs.example.org",
            "sqs://igneous-dag_run_group-12345678?region=us-east-2&endpoint=https://sqs.example.org",
            True,
        ),
        (
            "sqs://shared",
            "sqs://shared?region=eu-west-1&endpoint=http://127.0.0.1:9324&create=false",
            False,
        ),
        (
            "sqs://shared?region=us-east-2&create=true",
            "sqs://shared?region=us-east-2&endpoint=http://127.0.0.1:9324&create=false",
            False,
        ),
        (
            "https://sqs.us-east-2.amazonaws.com/123456789012/shared",
            "http://127.0.0.1:9324/123456789012/shared?region=us-east-2",
            False,
        ),
        (
            "http://sqs.example.org:9324/000000000000/shared",
            "http://sqs.example.org:9324/000000000000/shared?region=eu-west-1",
            False,
        ),
        ("sqlite:///data/queue.db", "sqlite:///data/queue.db", False),
    ],
)
def test_a_queue_is_chosen_by_configuration_and_by_each_run(
    asked: str, url: str, own: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUES", f"theirs = {asked}")
    assert queue_url(RUN, "theirs") == (url, own)
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUE", asked)
    assert queue_url(RUN) == (url, own)
    open_queue(url).close()


def test_without_a_connection_region_and_endpoint_are_left_to_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEFAULT", raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-south-1")
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUE", "sqs")
    url = "sqs://igneous-dag_run_group-12345678?region=ap-south-1"
    assert queue_url(RUN) == (url, True)


@pytest.mark.parametrize(
    "asked", ["memory://x", "rabbit", "sqs://a/b", "sqs?queue=x", "sqlite://relative", "", "sq s"]
)
def test_what_is_no_queue_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUE", asked)
    with pytest.raises(InvalidParameter):
        queue_url(RUN)


def test_a_connection_whose_endpoint_has_a_password_is_refused_without_saying_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = {"region_name": "eu-west-1", "endpoint_url": "http://me:hunter2@127.0.0.1:9324"}
    value = json.dumps({"conn_type": "aws", "extra": extra})
    monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", value)
    monkeypatch.setenv("AIRFLOW__IGNEOUS__QUEUE", "sqs")
    with pytest.raises(InvalidParameter, match="credentials") as caught:
        queue_url(RUN)
    assert "hunter2" not in str(caught.value)
