"""Many pods as one Job, whose controller replaces pods that end early."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from igneous_airflow.operators.stage_workers import StageWorkers
from igneous_airflow.progress import State
from igneous_airflow.run import Run

pytestmark = [pytest.mark.airflow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

Make = Callable[..., Any]


def job(run: Run) -> StageWorkers:
    return StageWorkers(task_id="workers", run_url=run.url, worker="job of 3 pods")


def test_the_pods_of_a_job_do_a_run_and_the_job_goes(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, capfd: Any
) -> None:
    use_cluster()
    run = launch(slow=True)
    job(run).execute(task(workers=3))
    log = capfd.readouterr().out
    assert run.progress().state is State.DONE
    assert "100.0 % done: 9 of 9 tasks" in log
    assert "had 3 pods; 0 have failed" in log
    assert "outcome=done" in log
    assert cluster.jobs() == []
    cluster.wait_until_empty()


def test_a_deferred_job_replaces_pods_that_are_evicted_or_killed(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, wait_until: Make, to_the_end: Make
) -> None:
    use_cluster(deferrable=True)
    run = launch(slow=True)
    before = len(cluster.pods_started())
    with ThreadPoolExecutor(1) as thread:
        context = task(workers=2, lease_seconds=10)
        working = thread.submit(to_the_end, job(run), context)
        wait_until(lambda: run.done().count and len(cluster.pods("Running")) == 2)
        evicted, killed = cluster.pods("Running")
        cluster.evict(evicted)
        cluster.kubelet.kill(killed)
        assert working.result(120) == 1, "the task has not even noticed"
    assert run.progress().state is State.DONE
    assert len(cluster.pods_started()) - before == 4
    assert cluster.jobs() == []


def test_a_retry_goes_on_with_the_job_that_there_is(
    launch: Make, use_cluster: Make, cluster: Any, task: Make, to_the_end: Make
) -> None:
    use_cluster(deferrable=True)
    run = launch(slow=True)
    with pytest.raises(TaskDeferred):
        job(run).execute(task(workers=2))
    (first,) = cluster.jobs()
    with pytest.raises(TaskDeferred):
        job(run).execute(task(workers=2))
    assert [found["metadata"]["uid"] for found in cluster.jobs()] == [first["metadata"]["uid"]]


@pytest.mark.parametrize("deferrable", [False, True], ids=["waiting", "deferred"])
def test_giving_the_task_up_removes_the_job_and_its_pods(
    launch: Make,
    use_cluster: Make,
    cluster: Any,
    task: Make,
    wait_until: Make,
    deferrable: bool,
) -> None:
    use_cluster(deferrable=deferrable)
    run = launch(slow=True)
    workers, context = job(run), task(workers=2, lease_seconds=3600)
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(workers.execute, context)
        wait_until(lambda: run.done().count)
        if deferrable:
            deferred = working.exception(60)
            assert isinstance(deferred, TaskDeferred)
            asyncio.run(deferred.trigger.on_kill())
        else:
            workers.on_kill()
        cluster.wait_until_empty()
    assert cluster.jobs() == []
    assert run.progress().state is State.INTERRUPTED
    assert run.progress().leased == 0


def test_an_account_without_the_role_is_told_what_it_lacks(
    launch: Make, use_cluster: Make, task: Make
) -> None:
    use_cluster(account="nobody")
    with pytest.raises(AirflowFailException, match='cannot create resource "jobs"'):
        job(launch()).execute(task(workers=3))
