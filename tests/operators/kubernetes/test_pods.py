"""Worker pods: real processes, or containers, started by an API server for KubernetesPodOperator."""

import asyncio
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowException, AirflowFailException, TaskDeferred

from igneous_airflow.operators.stage_workers import StageWorkers
from igneous_airflow.progress import State
from igneous_airflow.run import Run

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Make = Callable[..., Any]


def pod(run: Run, number: int = 1) -> StageWorkers:
    return StageWorkers(task_id="workers", run_url=run.url, worker=f"pod {number} of 2")


def stored(run: Run) -> dict[str, bytes]:
    layer = Path(run.parameters["layer"].removeprefix("file://"))
    files = (path for path in layer.rglob("*") if path.is_file() and path.name != "provenance")
    return {str(path.relative_to(layer)): path.read_bytes() for path in files}


@contextmanager
def in_background(work: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(work, *arguments)


def states(dag_run: Any, task: str) -> list[str]:
    found = [t for t in dag_run.get_task_instances() if t.task_id == f"downsample.{task}"]
    return [str(t.state) for t in sorted(found, key=lambda t: t.map_index)]


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_a_dag_run_is_done_by_pods_and_their_log_is_in_that_of_the_task(
    dags: dict[str, DAG],
    make_layer: Make,
    use_cluster: Make,
    cluster: Any,
    capfd: pytest.CaptureFixture[str],
    deferrable: bool,
) -> None:
    use_cluster(deferrable=deferrable)
    layer = make_layer()
    layer.chmod(0o777)
    done = dags["igneous_downsample"].test(run_conf={"layer": str(layer), "num_mips": 1})
    log = capfd.readouterr().out
    assert done.state == "success", log
    assert states(done, "workers") == ["success", "success"]
    assert len(list((layer / "8_8_40").iterdir())) == 4
    assert len(re.findall(r"outcome=done .* cell=\d+-\d+_\d+-\d+_0-64 ", log)) == 4
    assert cluster.pods() == []
