"""Worker pods: real processes or containers, which a cluster runs for KubernetesPodOperator."""

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
from igneous_airflow.queue.protocol import open_queue
from igneous_airflow.run import Run
from igneous_airflow.worker.loop import Worker, WorkerOptions

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Make = Callable[..., Any]


def pod(run: Run, number: int = 1) -> StageWorkers:
    return StageWorkers(task_id="workers", run_url=run.url, worker=f"pod {number} of 2")


def stored(run: Run) -> dict[str, bytes]:
    layer = Path(run.resolved["layer"].removeprefix("file://"))
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
    done = dags["igneous_downsample"].test(run_conf={"layer": str(layer), "num_mips": 1})
    log = capfd.readouterr().out
    assert done.state == "success", log
    assert states(done, "workers") == ["success", "success"]
    assert len(list((layer / "8_8_40").iterdir())) == 4
    assert log.count("No pod is needed: every task has its receipt") == 2
    assert len(re.findall(r"outcome=done .* cell=\d+-\d+_\d+-\d+_0-64 ", log)) == 4
    cluster.wait_until_empty()


def test_pods_that_are_evicted_or_killed_are_started_again_and_leave_the_same_bytes(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, wait_until: Make
) -> None:
    use_cluster()
    run, undisturbed = launch(slow=True), launch("other", slow=True)  # of the same voxels
    before = len(cluster.pods_started())
    uids: list[str] = []

    def another_pod() -> Any:
        running = cluster.pods("Running")
        return [pod for pod in running if pod["metadata"]["uid"] not in uids]

    with in_background(pod(run).execute, task(lease_seconds=10)) as working:
        for disturb in (cluster.evict, cluster.kubelet.kill):
            (running,) = wait_until(another_pod)
            uids.append(running["metadata"]["uid"])
            done = run.done().count
            wait_until(lambda done=done: run.done().count > done)
            disturb(running)
        working.result(120)
    assert len(cluster.pods_started()) - before == 3
    assert run.progress().state is State.DONE
    assert run.progress().failed_attempts == 0
    cluster.wait_until_empty()
    Worker(
        undisturbed.open_queue(),
        undisturbed.runs_folder,
        WorkerOptions(until_done=True),
        lambda _: None,
    ).work()
    assert stored(run) == stored(undisturbed)


def test_a_pod_that_ends_when_nothing_was_done_is_left_to_a_retry_of_airflow(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_cluster()
    run = launch()
    queue = Path(run.queue.removeprefix("sqlite://"))
    away = queue.rename(queue.with_suffix(".away"))
    queue.mkdir()  # no queue for the pod; this process has another
    monkeypatch.setattr(Run, "open_queue", lambda _: open_queue(f"sqlite://{away}"))
    with pytest.raises(AirflowException, match="4 tasks are left and none was done") as caught:
        pod(run).execute(task())
    assert not isinstance(caught.value, AirflowFailException)
    cluster.wait_until_empty()


def test_tasks_that_were_given_up_are_named_and_nothing_is_tried_again(
    launch: Make, use_cluster: Make, task: Make
) -> None:
    use_cluster()
    run = launch()
    layer = Path(run.resolved["layer"].removeprefix("file://"))
    (layer / "4_4_40" / "0-64_64-128_0-64").unlink()
    with pytest.raises(AirflowFailException, match="1 of 4 tasks") as caught:
        pod(run).execute(task())
    assert "MissingChunk: chunk 0-64_64-128_0-64" in str(caught.value)


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_an_image_that_cannot_be_pulled_is_named(
    launch: Make,
    use_cluster: Make,
    cluster: Any,
    task: Make,
    to_the_end: Make,
    deferrable: bool,
    *,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_cluster(deferrable=deferrable)
    monkeypatch.setenv("AIRFLOW__IGNEOUS__IMAGES", "registry.example.org/nothing:1")
    run = launch()
    with pytest.raises(AirflowException) as caught:
        to_the_end(pod(run), task(worker_image="registry.example.org/nothing:1"))
    assert not isinstance(caught.value, AirflowFailException), "the registry may only be busy"
    assert "the pod could not start: Image cannot be pulled" in str(caught.value)
    assert "registry.example.org/nothing:1" in str(caught.value)
    assert all("deletionTimestamp" in pod["metadata"] for pod in cluster.pods())


def test_a_deferred_pod_that_is_evicted_is_started_again(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, wait_until: Make, to_the_end: Make
) -> None:
    use_cluster(deferrable=True)
    run = launch(slow=True)
    with in_background(to_the_end, pod(run), task()) as working:
        wait_until(lambda: run.done().count)
        cluster.evict(*cluster.pods("Running"))
        assert working.result(120) == 2
    assert run.progress().state is State.DONE


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_an_account_without_the_role_is_told_what_it_lacks(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, deferrable: bool
) -> None:
    use_cluster(deferrable=deferrable, account="nobody")
    run = launch()
    with pytest.raises(AirflowFailException) as caught:
        pod(run).execute(task())
    assert 'cannot list resource "pods"' in str(caught.value)
    assert "manifests/airflow.yaml" in str(caught.value)
    assert run.progress().waiting == 4


def test_no_more_pods_are_started_than_there_are_tasks(
    dags: dict[str, DAG], make_layer: Make, use_cluster: Make, cluster: Any
) -> None:
    use_cluster()
    layer = make_layer()
    before = len(cluster.pods_started())
    conf = {"layer": str(layer), "num_mips": 1, "workers": 9}
    done = dags["igneous_downsample"].test(run_conf=conf)
    assert states(done, "workers") == ["success"] * 4
    # one after the other here: the first has done everything
    assert len(cluster.pods_started()) - before == 1


def test_killing_the_task_removes_its_pod_which_gives_its_task_back(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, wait_until: Make
) -> None:
    use_cluster()
    run = launch(slow=True)
    workers = pod(run)
    with in_background(workers.execute, task(lease_seconds=3600)) as working:
        wait_until(lambda: run.done().count)
        workers.on_kill()
        cluster.wait_until_empty()
        working.result(60)
    progress = run.progress()
    assert progress.state is State.INTERRUPTED
    assert (progress.leased, progress.failed_attempts) == (0, 0)


def test_marking_a_deferred_task_removes_its_pod(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, wait_until: Make
) -> None:
    use_cluster(deferrable=True)
    run = launch(slow=True)
    with pytest.raises(TaskDeferred) as deferred:
        pod(run).execute(task(lease_seconds=3600))
    wait_until(lambda: run.done().count)
    asyncio.run(deferred.value.trigger.on_kill())
    cluster.wait_until_empty()
    assert run.progress().leased == 0


def test_lost_messages_are_sent_again_by_the_first_pod_only(
    launch: Make, use_cluster: Make, task: Make
) -> None:
    use_cluster()
    run = launch()
    run.open_queue().purge()
    pod(run, 2).execute(task(1))
    assert run.progress().state is State.STALLED
    pod(run, 1).execute(task(0))
    assert run.progress().state is State.DONE


def test_a_template_that_is_gone_is_named_and_not_tried_again(
    launch: Make, use_cluster: Make, task: Make
) -> None:
    use_cluster(POD_TEMPLATE="/nothing/template.yaml")
    with pytest.raises(AirflowFailException, match=r"/nothing/template\.yaml cannot be used"):
        pod(launch()).execute(task())
