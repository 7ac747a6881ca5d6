"""Who is told of a failure, and what is reported through Airflow's metrics."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from airflow.sdk import DAG, BaseNotifier
from airflow.sdk.observability import stats
from airflow.sdk.observability.metrics.stats_utils import NoStatsLogger, get_stats_factory

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.operators.group import stage_group
from igneous_airflow.operators.notify import notify_failure
from igneous_airflow.operators.stage import FinishStage
from igneous_airflow.stages.downsample import Downsample

pytestmark = pytest.mark.airflow

Make = Callable[..., Any]
SETTING = "AIRFLOW__IGNEOUS__ON_FAILURE_CALLBACK"


class Channel(BaseNotifier):
    """One of Airflow's notifiers, with a template as they have them."""

    told: ClassVar[list[str]] = []
    template_fields = ("text",)

    def __init__(self, text: str = "{{ task.task_id }}: {{ exception }}") -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Any) -> None:
        self.told.append(self.text)


channel = Channel("{{ dag.dag_id }} has failed")
told = Channel.told


def tell(context: Any) -> None:
    """A plain function."""
    told.append(f"a function: {context['exception']}")


@pytest.fixture(autouse=True)
def _nobody_was_told() -> None:
    told.clear()


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[str]]]:
    """A server that listens as StatsD does; gives our lines that have arrived."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_ON", "True")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_HOST", "127.0.0.1")
        monkeypatch.setenv("AIRFLOW__METRICS__STATSD_PORT", str(server.getsockname()[1]))
        logger = get_stats_factory()()
        # as Airflow does where it runs a task
        stats.initialize(factory=lambda: logger, export_legacy_names=False)

        def arrived() -> list[str]:
            lines: list[str] = []
            while True:
                try:
                    lines += server.recv(65_536).decode().splitlines()
                except TimeoutError:
                    return [line for line in lines if ".igneous." in line]

        yield arrived
        logger.statsd.close()
        stats.initialize(factory=NoStatsLogger, export_legacy_names=False)


def test_a_failure_is_told_once_with_the_errors_and_the_link_and_is_counted(
    dags: dict[str, DAG],
    make_layer: Make,
    monkeypatch: pytest.MonkeyPatch,
    metrics: Callable[[], list[str]],
) -> None:
    monkeypatch.setenv(SETTING, f"{__name__}.Channel")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org")
    layer = make_layer()
    for chunk in ("128-192_0-64_0-64", "128-192_128-192_0-64"):
        (layer / "4_4_40" / chunk).unlink()
    done = dags["igneous_downsample"].test(run_conf={"layer": str(layer), "num_mips": 1})
    assert done.state == "failed"
    (text,) = told
    assert text.startswith("downsample.drained: 2 of 4 tasks of run igneous_downsample_")
    assert "(2 such errors, the first in task 1)" in text
    assert text.count("MissingChunk: ") == 1
    assert "DAG run: https://airflow.example.org/dags/igneous_downsample/runs/manual" in text
    assert sorted(metrics()) == [
        "airflow.igneous.downsample.attempts_failed:2|c",
        "airflow.igneous.downsample.runs_failed:1|c",
        "airflow.igneous.downsample.tasks_failed:2|c",
    ]


def test_a_run_that_is_done_is_counted_once_and_told_to_nobody(
    dags: dict[str, DAG],
    make_layer: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    metrics: Callable[[], list[str]],
) -> None:
    monkeypatch.setenv(SETTING, f"{__name__}.Channel")
    conf = {"layer": str(make_layer()), "num_mips": 1, "compress": "none"}
    done = dags["igneous_downsample"].test(run_conf=conf)
    assert done.state == "success"
    assert told == []
    counted = dict(line.split(":") for line in metrics())
    assert float(counted.pop("airflow.igneous.downsample.seconds").removesuffix("|ms")) > 0
    assert counted == {
        "airflow.igneous.downsample.runs_done": "1|c",
        "airflow.igneous.downsample.tasks_done": "4|c",
        "airflow.igneous.downsample.voxels": f"{256 * 256 * 64}|c",
        "airflow.igneous.downsample.bytes_written": f"{128 * 128 * 64}|c",
    }
    (record,) = tmp_path.glob("state/*/run.json")
    FinishStage(task_id="finish", run_url=f"file://{record.parent}").execute({})
    assert metrics() == [], "a task that is cleared counts nothing again"


def test_a_refused_form_is_told_with_the_link(
    dags: dict[str, DAG], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, f"{__name__}.tell")
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org")
    conf = {"layer": f"{tmp_path}/nothing", "factor": "2,2,2", "axis": "x"}
    assert dags["igneous_downsample"].test(run_conf=conf).state == "failed"
    (text,) = told
    assert text.startswith("a function: Nothing was started:\n  - axis: x and factor: 2,2,2")
    assert "\nDAG run: https://airflow.example.org/dags/igneous_downsample/runs/" in text


def test_whoever_the_configuration_names_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with DAG("a_dag") as dag:
        group = stage_group(Downsample)
    context: Any = {"dag": dag, "task": dag.get_task("downsample.plan"), "exception": "no luck"}
    notify_failure(context)
    assert told == [], "nobody is named unless the site does"
    for name in ("Channel", "channel", "tell"):
        monkeypatch.setenv(SETTING, f"{__name__}.{name}")
        notify_failure(context)
    assert told == ["downsample.plan: no luck", "a_dag has failed", "a function: no luck"]
    assert group.group_id == "downsample"


@pytest.mark.parametrize("path", ["nowhere", "no_such_module.tell", f"{__name__}.nobody"])
def test_a_name_that_cannot_be_imported_is_named(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SETTING, path)
    with pytest.raises(InvalidParameter, match=f"on_failure_callback = '{path}' cannot be import"):
        notify_failure({})


def test_workers_that_fail_tell_nobody_since_the_run_may_be_done() -> None:
    with DAG("a_dag") as dag:
        stage_group(Downsample)
    telling = {task.task_id.partition(".")[2] for task in dag.tasks if task.on_failure_callback}
    assert telling == {"plan", "enqueue", "drained", "finish"}
