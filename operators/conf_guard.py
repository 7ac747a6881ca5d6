"""Refuses DAG runs whose parameters hold credentials, before Airflow stores or logs the request.

Airflow keeps what a request says in its audit log, also when the request is refused, and a run's
parameters for ever. Installed by the plugin in front of Airflow's API.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from igneous_airflow.credentials import refuse_credentials
from igneous_airflow.errors import InvalidParameter

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OURS = "igneous_"  # how the ids of our DAGs begin
_CONFS = ("conf", "dag_run_conf")  # of a DAG run, and of a backfill
#: Where runs of a DAG are made, by people and by tasks of other DAGs.
_DAG_RUNS = re.compile(r"/dags/([^/]+)/dagRuns/?$|/dag-runs/([^/]+)/[^/]+/?$")


class ConfGuard:
    """Answers requests for runs of our DAGs with 400 when their parameters hold credentials."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it without repeating what it says."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        messages = [message async for message in _body(receive)]
        if problems := list(_problems(scope["path"], messages)):
            await _refuse(problems, send)
            return
        left = iter(messages)

        async def replay() -> "Message":
            return next(left, None) or await receive()

        await self._app(scope, replay, send)


async def _body(receive: "Receive") -> Any:
    """The messages of a request, up to the end of its body."""
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)
        yield message


def _problems(path: str, messages: list["Message"]) -> Iterator[str]:
    """What is wrong with the parameters that a request has for a run of one of our DAGs."""
    try:
        request = json.loads(b"".join(message.get("body", b"") for message in messages))
    except ValueError:  # Airflow says what is wrong with it
        return
    if not isinstance(request, dict):
        return
    found = _DAG_RUNS.search(path)
    dag = (found[1] or found[2]) if found else request.get("dag_id")
    if not str(dag).startswith(_OURS):
        return
    for name in _CONFS:
        conf = request.get(name)
        yield from _wrong(conf if isinstance(conf, dict) else {})


def _wrong(conf: Mapping[str, object]) -> Iterator[str]:
    for field, value in conf.items():
        try:
            refuse_credentials(value)
        except InvalidParameter as error:
            yield f"{field}: {error}"


async def _refuse(problems: list[str], send: "Send") -> None:
    content = json.dumps({"detail": "; ".join(problems)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": content})
