"""What a run costs in requests to SQS, by which Amazon bills; used by `sqs.py`.

Prices: https://aws.amazon.com/sqs/pricing/ (every 64 kB of a request's payload count as one).
"""

from igneous_airflow.queue.sqs_sender import BATCH_ENTRIES, MESSAGE_BYTES

_BILLED_BYTES = 65_536


def request_range(messages: int, size: int) -> tuple[int, int]:
    """The fewest and the most requests for messages of `size` bytes, each worked on once.

    Fewest when tasks take so little time that workers take and acknowledge ten at once.
    """
    together = max(1, min(BATCH_ENTRIES, MESSAGE_BYTES // max(size, 1)))
    batches = -(-messages // together)
    full = batches * -(-together * size // _BILLED_BYTES)
    alone = messages * -(-size // _BILLED_BYTES)
    return 2 * full + batches, full + alone + messages


def describe_cost(messages: int, size: int) -> str:
    """The requests in words; empty without any message."""
    if not messages:
        return ""
    fewest, most = request_range(messages, size)
    return (
        f"costs {fewest:,} requests to SQS when tasks take milliseconds, up to {most:,} when they "
        "take seconds, and one more for each half minute that a task takes"
    )
