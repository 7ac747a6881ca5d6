"""Sends messages to SQS: in batches, by several threads, in bounded memory; used by `sqs.py`."""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.queue.sqs_service import Refused, Service

#: What SQS takes: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MESSAGE_BYTES = 1_048_576  # with its attributes; also all of a batch together
BATCH_ENTRIES = 10
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

#: Kept free in each message for the reason that stands beside it in the dead letters.
REASON_BYTES = 16_384
_BODY_BYTES = MESSAGE_BYTES - REASON_BYTES

_THREADS = 8
_BATCHES_AHEAD = 4 * _THREADS


def send_all(service: Service, url: str, bodies: Iterable[str]) -> int:
    """Send messages and return how many; the first error ends it, after what is being sent.

    Raises InvalidParameter for a body that SQS cannot hold, before it is sent.
    """
    sent = 0
    under_way: deque[Future[int]] = deque()
    threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="sqs-send")
    try:
        for batch in _batches(bodies):
            under_way.append(threads.submit(_send, service, url, batch))
            if len(under_way) >= _BATCHES_AHEAD:
                sent += under_way.popleft().result()
        return sent + sum(future.result() for future in under_way)
    finally:
        threads.shutdown(cancel_futures=True)


def _send(service: Service, url: str, bodies: Sequence[str]) -> int:
    """Send a batch until every entry of it is stored."""
    try:
        refused = service.batch(
            "send_message_batch", url, [{"MessageBody": body} for body in bodies]
        )
    except Refused as error:
        # a service with lower limits than today's: the parts of the batch may do
        if error.code != "BatchRequestTooLong" or len(bodies) == 1:
            raise
        middle = len(bodies) // 2
        return _send(service, url, bodies[:middle]) + _send(service, url, bodies[middle:])
    if refused:
        raise refused[0]
    return len(bodies)


def _batches(bodies: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    total = 0
    for body in bodies:
        size = _size(body)
        if batch and (len(batch) == BATCH_ENTRIES or total + size > MESSAGE_BYTES):
            yield batch
            batch, total = [], 0
        batch.append(body)
        total += size
    if batch:
        yield batch


def _size(body: str) -> int:
    """Bytes of a body in UTF-8; raises InvalidParameter when SQS cannot hold it."""
    if not body:
        raise InvalidParameter("SQS holds no empty messages")
    if forbidden := _FORBIDDEN.search(body):
        raise InvalidParameter(
            f"SQS holds no messages with the character {forbidden[0]!r}: escape it, as JSON does"
        )
    size = len(body) if body.isascii() else len(body.encode())
    if size > _BODY_BYTES:
        raise InvalidParameter(
            f"a message of {size:,} bytes is too large for SQS, which takes {_BODY_BYTES:,} "
            f"besides room for the reason of a failure: it begins with {body[:100]!r}"
        )
    return size
