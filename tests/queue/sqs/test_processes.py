"""Several processes on one queue."""

import multiprocessing
import os
import subprocess
import sys

from igneous_airflow.queue.protocol import Queue, open_queue
from igneous_airflow.testing.queues import drain, take


def use_after_fork(queue: Queue) -> None:
    lease = take(queue)
    queue.done(lease)
    queue.send([lease.body.upper()])
    queue.close()
    os._exit(0)


def test_a_queue_may_be_used_on_both_sides_of_a_fork(url: str) -> None:
    queue = open_queue(url)
    queue.send(["a"])
    queue.done(take(queue))  # waits to be sent, and is the parent's to send
    queue.send(["b", "c", "d"])
    child = multiprocessing.get_context("fork").Process(target=use_after_fork, args=(queue,))
    child.start()
    queue.done(take(queue, 5))
    child.join()
    assert child.exitcode == 0
    assert len(drain(queue)) == 2
    queue.delete()
    queue.close()


DRAIN = """
import sys
from igneous_airflow.queue.protocol import open_queue
queue = open_queue(sys.argv[1])
while lease := queue.lease(60, wait=1):
    queue.done(lease)
    print(lease.attempt, lease.body)
queue.close()
"""


def test_processes_that_drain_one_queue_settle_each_message_once(url: str) -> None:
    queue = open_queue(url)
    queue.send(map(str, range(400)))
    workers = [
        subprocess.Popen([sys.executable, "-c", DRAIN, url], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    lines = [line for worker in workers for line in worker.communicate()[0].splitlines()]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert sorted(lines) == sorted(f"1 {i}" for i in range(400))
    assert queue.counts().drained
    queue.delete()
    queue.close()
