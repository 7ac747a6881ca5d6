"""What browsers are told with every answer, so that no layer, run or link can do more than show."""

from collections.abc import Mapping

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NOTHING = {
    "default-src": "'none'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'self'",
}


def _policy(allowed: Mapping[str, str]) -> str:
    return "; ".join(
        f"{name} {sources}".strip() for name, sources in {**_NOTHING, **allowed}.items()
    )


#: For data and messages, which a browser should not run.
DATA = _policy({"sandbox": ""})
#: For pages of ours, Airflow's frame around them included.
PAGE = _policy(
    {
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": "'self'",
    }
)
#: For the Neuroglancer client: it compiles decoders, starts workers, and styles its panels inline.
CLIENT = _policy(
    {
        "script-src": "'self' 'wasm-unsafe-eval'",
        "worker-src": "'self' blob:",
        "style-src": "'self' 'unsafe-inline'",
        "img-src": "'self' data: blob:",
        "font-src": "'self' data:",
        "connect-src": "'self'",
    }
)

#: For the client's scripts, where they run as workers: one makes its code for labels as it starts.
WORKER = _policy(
    {
        "script-src": "'self' 'wasm-unsafe-eval' 'unsafe-eval'",
        "worker-src": "'self' blob:",
        "connect-src": "'self'",
    }
)


class SecurityHeaders:
    """Adds the headers to every answer of an application.

    A policy that an application inside has chosen for itself stays.
    """

    def __init__(self, app: ASGIApp, policy: str = DATA) -> None:
        self._app = app
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("Content-Security-Policy", self._policy)
                for name, value in _ALWAYS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
