"""What a run costs in requests."""

import pytest

from igneous_airflow.queue.sqs_cost import describe_cost, request_range


@pytest.mark.parametrize(
    ("messages", "size", "fewest", "most"),
    [
        (0, 700, 0, 0),
        (1, 700, 3, 3),
        (1000, 700, 300, 2_100),
        (1000, 20_000, 100 * (4 + 1 + 4), 400 + 2_000),  # 200 kB a batch are billed fourfold
        (10, 1_000_000, 10 * (16 + 1 + 16), 160 + 160 + 10),
    ],
)
def test_requests_are_counted_as_they_are_billed(
    messages: int, size: int, fewest: int, most: int
) -> None:
    assert request_range(messages, size) == (fewest, most)
    assert (f"{most:,} when" in describe_cost(messages, size)) == (messages > 0)
