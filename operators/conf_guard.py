"""Refuses requests for DAG runs that hold credentials, before Airflow stores or logs them.

Airflow keeps what a request says in its audit log, also when the request is refused, and a run's
parameters, note and id for ever. Installed by the plugin in front of Airflow's API, before anyone
is logged in: so it looks at few requests, and at no more of them than it needs.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from http import HTTPStatus
from itertools import islice
from typing import TYPE_CHECKING, Any

from igneous_airflow.credentials import has_credentials, hide_credentials, refuse_credentials
from igneous_airflow.errors import InvalidParameter

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

_OURS = "igneous_"  # how the ids of our DAGs begin
_CONFS = ("conf", "dag_run_conf")  # of a DAG run, and of a backfill
#: Where DAG runs are made, by people, by tasks of other DAGs and by what happens to assets.
_MAKES_RUNS = re.compile(
    r"/dags/(?P<dag>[^/]+)/dagRuns/?$|/dag-runs/(?P<by_task>[^/]+)/[^/]+/?$"
    r"|/backfills(/dry_run)?/?$|/assets/(events|[^/]+/materialize)/?$"
)
_MOST_BYTES = 1_000_000  # of a request: forms have a few thousand
_SHOWN = 10  # problems
_TELLING = re.compile("[:=%@]|A[KS]IA")  # what credentials are not without
_AROUND_WORDS = ".,;:!?()[]{}<>\"'"


class TooLarge(Exception):
    """A request for a DAG run has more bytes than any that makes sense."""


class ConfGuard:
    """Answers requests for DAG runs with 400 when they hold credentials, 413 when too large."""

    def __init__(self, app: "ASGIApp") -> None:
        self._app = app

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on, or refuse it without repeating what it says."""
        is_post = scope["type"] == "http" and scope["method"] == "POST"
        found = _MAKES_RUNS.search(scope["path"]) if is_post else None
        if found is None:
            await self._app(scope, receive, send)
            return
        try:
            messages = await _body(receive)
        except TooLarge:
            most = f"a request for a DAG run may have {_MOST_BYTES:,} bytes: send less"
            await _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, most, send)
            return
        body = b"".join(message.get("body", b"") for message in messages)
        dag = found["dag"] or found["by_task"]
        if problems := await asyncio.to_thread(_problems, dag, body):
            await _refuse(HTTPStatus.BAD_REQUEST, "; ".join(problems), send)
            return
        left = iter(messages)

        async def replay() -> "Message":
            return next(left, None) or await receive()

        await self._app(scope, replay, send)


async def _body(receive: "Receive") -> list["Message"]:
    """The messages of a request, up to the end of its body; raises TooLarge."""
    messages: list[Message] = []
    size, more = 0, True
    while more:
        message = await receive()
        messages.append(message)
        more = message["type"] == "http.request" and message.get("more_body", False)
        size += len(message.get("body", b""))
        if size > _MOST_BYTES:
            raise TooLarge
    return messages


def _problems(dag: str | None, body: bytes) -> list[str]:
    """What holds credentials in a request for runs of a DAG, which the request may name itself."""
    try:
        request: Any = json.loads(body)
    except RecursionError:
        return ["the request is nested too deeply: send parameters as the form of the DAG has them"]
    except ValueError:  # Airflow says what is wrong with it
        return []
    if not isinstance(request, dict):
        return []
    is_ours = str(dag or request.get("dag_id")).startswith(_OURS)
    return list(islice(_found(request, is_ours=is_ours), _SHOWN))


def _found(request: dict[str, Any], *, is_ours: bool) -> Iterator[str]:
    """What is wrong with each field of a request, and each one of a run's parameters."""
    for name, value in request.items():
        is_conf = name in _CONFS and isinstance(value, dict)
        for field, content in value.items() if is_conf else [(name, value)]:
            for text in (*_texts(content), field):
                # parameters of ours are addresses; any other may be prose
                if problem := _wrong(text) if is_ours and is_conf else _wrong_word(text):
                    yield f"{hide_credentials(field)}: {problem}"
                    break


def _texts(value: object) -> Iterator[str]:
    """Every text in JSON data, however deep."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            left += [*item.keys(), *item.values()]
        elif isinstance(item, list):
            left += item


def _wrong(text: str) -> str:
    try:
        refuse_credentials(text)
    except InvalidParameter as error:
        return str(error)
    return ""


def _wrong_word(text: str) -> str:
    """What is wrong with an address among the words of a text; empty if nothing is."""
    words = (word.strip(_AROUND_WORDS) for word in text.split() if _TELLING.search(word))
    addresses = (word.removeprefix("mailto:") for word in words)
    return next((_wrong(word) for word in addresses if has_credentials(word)), "")


async def _refuse(status: int, detail: str, send: "Send") -> None:
    content = json.dumps({"detail": detail}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": int(status), "headers": headers})
    await send({"type": "http.response.body", "body": content})
