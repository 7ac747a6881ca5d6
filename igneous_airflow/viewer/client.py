"""The built Neuroglancer client inside the `neuroglancer` package, as it wants to be served."""

import asyncio
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from igneous_airflow.errors import InvalidParameter
from igneous_airflow.viewer.headers import CLIENT, WORKER, SecurityHeaders

_HEARTBEAT_SECONDS = 30.0


def client_routes() -> list[BaseRoute]:
    """Where the client is; raises InvalidParameter when it is not installed."""
    policy = [Middleware(SecurityHeaders, policy=CLIENT)]
    files = _ClientFiles(directory=_client_folder(), html=True)
    return [
        Route("/neuroglancer/events/{token}", _no_events),
        Mount("/neuroglancer/v/{token}", files, middleware=policy),
    ]


class _ClientFiles(StaticFiles):
    """The client's files; its scripts are told what they may do where they run as workers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """A file."""
        answer = await super().get_response(path, scope)
        if path.endswith(".js"):
            answer.headers["Content-Security-Policy"] = WORKER
        return answer


def _client_folder() -> Path:
    package = find_spec("neuroglancer")
    if package is None or package.origin is None:
        raise InvalidParameter(
            "the viewer needs the package neuroglancer: pip install 'igneous-airflow[viewer]'"
        )
    return Path(package.origin).parent / "static" / "client"


async def _no_events(request: Request) -> Response:  # noqa: ARG001
    """A stream that says nothing: the client waits for a Python process, which is not there."""

    async def silence() -> AsyncIterator[str]:
        while True:
            yield ": nothing\n\n"
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    return StreamingResponse(silence(), media_type="text/event-stream")
