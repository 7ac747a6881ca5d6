"""The contract of a queue, and what is there before the first use."""

import subprocess
import sys
from typing import ClassVar

import pytest

from igneous_airflow.queue.protocol import Lease, Queue
from igneous_airflow.testing.queues import QueueTests


class TestSqsQueue(QueueTests):
    moment: ClassVar[float] = 1
    ordered: ClassVar[bool] = False
    refused_bodies: ClassVar[frozenset[str]] = frozenset({"empty", "control characters"})

    @pytest.fixture
    def url(self, url: str) -> str:
        return url

    def lease_or_none(self, queue: Queue) -> Lease | None:
        return queue.lease(60)  # waiting takes whole seconds, and this server is exact


def test_opening_asks_nothing_and_does_not_even_import_boto3() -> None:
    program = (
        "import sys; from igneous_airflow.queue.protocol import open_queue; "
        "open_queue('sqs://q?endpoint=http://127.0.0.1:1').close(); "
        "assert not {'boto3', 'botocore'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
