"""What SQS may do to its clients, as faults of a proxy in front of a server that speaks as it does.

A fault has its operation as `part`, for example "SendMessageBatch"; others are made here.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3

PROXY = runpy.run_path(str(Path(__file__).parents[1] / "storage" / "faulty_proxy.py"))
Fault = PROXY["Fault"]
FOR_EVER = 1_000_000


def refusal(code: str, status: int = 400) -> dict[str, Any]:
    """An answer with an error, in SQS's words."""
    error = {"__type": f"com.amazonaws.sqs#{code}", "message": "as told"}
    return {"status": status, "body": json.dumps(error)}


THROTTLED = refusal("RequestThrottled")
BROKEN = refusal("InternalError", 500)


def half_of_the_entries_fail(times: int) -> Any:
    """Every second entry of a batch is not sent, and the answer says so."""

    def tell(asked: bytes, answer: bytes) -> bytes:
        failure = {"Code": "InternalError", "SenderFault": False, "Message": "as told"}
        failed = [{"Id": entry["Id"], **failure} for entry in json.loads(asked)["Entries"][1::2]]
        return json.dumps(json.loads(answer) | {"Failed": failed}).encode()

    keep_others = _changing(lambda request: request | {"Entries": request["Entries"][::2]})
    return Fault(part="SendMessageBatch", times=times, ask=keep_others, tell=tell)


def counters(held: int) -> Any:
    """Counters that tell of no waiting message, and of so many that workers hold, for ever."""
    waiting = "ApproximateNumberOfMessages"
    lies = {waiting: "0", f"{waiting}NotVisible": str(held)}

    def lie(answer: dict[str, Any]) -> dict[str, Any]:
        told = answer["Attributes"]
        return {"Attributes": {name: lies.get(name, told[name]) for name in told}}

    change = _changing(lie)
    return Fault(part="GetQueueAttributes", times=FOR_EVER, tell=lambda _, told: change(told))


def leases_end_early(seconds: int, times: int, **fault: Any) -> Any:
    """Leases end sooner than was asked for, without a word to those who hold them."""
    ask = _changing(lambda request: request | {"VisibilityTimeout": seconds})
    return Fault(part="ReceiveMessage", times=times, ask=ask, **fault)


def lose_messages(endpoint: str, count: int) -> None:
    """Delete waiting messages, behind everybody's back."""
    client = boto3.client("sqs", endpoint_url=endpoint)
    queue = {"QueueUrl": client.get_queue_url(QueueName="igneous")["QueueUrl"]}
    for _ in range(count):
        (message,) = client.receive_message(**queue)["Messages"]
        client.delete_message(**queue, ReceiptHandle=message["ReceiptHandle"])


def _changing(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps(change(json.loads(body))).encode()
