"""What SQS may do to its clients, as faults of a proxy in front of a server that speaks as it does.

A fault has its operation as `part`, for example "SendMessageBatch"; others are made here.
"""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROXY = runpy.run_path(str(Path(__file__).parents[1] / "storage" / "faulty_proxy.py"))
Fault = PROXY["Fault"]


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


def counters(times: int, **numbers: int) -> Any:
    """Counters that say so, whatever there is: `visible` and `held` messages."""
    values = {
        "ApproximateNumberOfMessages": numbers.get("visible", 0),
        "ApproximateNumberOfMessagesNotVisible": numbers.get("held", 0),
    }

    def lie(answer: dict[str, Any]) -> dict[str, Any]:
        told = answer.get("Attributes", {})
        lies = {name: str(number) for name, number in values.items() if name in told}
        return answer | {"Attributes": told | lies}

    change = _changing(lie)
    return Fault(part="GetQueueAttributes", times=times, tell=lambda _, answer: change(answer))


def leases_end_early(seconds: int, times: int, **fault: Any) -> Any:
    """Leases end sooner than was asked for, without a word to those who hold them."""
    ask = _changing(lambda request: request | {"VisibilityTimeout": seconds})
    return Fault(part="ReceiveMessage", times=times, ask=ask, **fault)


def _changing(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[bytes], bytes]:
    return lambda body: json.dumps(change(json.loads(body))).encode()
