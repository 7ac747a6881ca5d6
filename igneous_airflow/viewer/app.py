"""The web application that shows layers: the Neuroglancer client, and the layers' files.

A *view* is a few layers under names; whoever makes the application says which views there are.
Nothing else is ever opened: a path that a browser names is looked for inside of a view's layer.
"""

import asyncio
import html
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from igneous_airflow.errors import AccessDenied, IgneousError, InvalidParameter, TransientError
from igneous_airflow.storage.codecs import decompress_bytes
from igneous_airflow.storage.files import Buffer, StoredFile, open_folder
from igneous_airflow.storage.layer import Layer
from igneous_airflow.storage.links import leads_outside
from igneous_airflow.viewer.state import BASE, Shown, viewer_state

#: The layers of a view, by their names, for whoever asks; None where there is no such view.
FindView = Callable[[str, Request], Mapping[str, str] | None]
#: What else to show beneath the layers of a view: other views, their layers' names and addresses.
FindBeneath = Callable[[str, Request], Iterable[tuple[str, str, str]]]

_HEARTBEAT_SECONDS = 30.0
_FILE_BYTES = 1 << 30  # of a file that the browser cannot decompress
_OPEN_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<p id="message">Opening {title} ...</p>
<script>
  const base = location.href.replace(/\\/open\\/[^/]*$/, "");
  fetch(base + "/state/{view}", {{credentials: "same-origin"}}).then(async (answer) => {{
    const text = await answer.text();
    if (!answer.ok) throw new Error(text);
    const state = text.replaceAll("{placeholder}", base);
    location.replace(base + "/neuroglancer/v/1/#!" + encodeURIComponent(state));
  }}).catch((error) => {{ document.getElementById("message").textContent = error.message; }});
</script>
"""


def _nothing(view: str, request: Request) -> Iterable[tuple[str, str, str]]:  # noqa: ARG001
    return ()


def viewer_app(find_view: FindView, find_beneath: FindBeneath = _nothing) -> Starlette:
    """The application; it may be mounted below any path. Raises InvalidParameter without client."""
    viewer = _Viewer(find_view, find_beneath)
    client = StaticFiles(directory=_client_folder(), html=True)
    return Starlette(
        routes=[
            Route("/open/{view}", viewer.open),
            Route("/state/{view}", viewer.state),
            Route("/data/{view}/{layer}/{path:path}", viewer.data),
            Route("/neuroglancer/events/{token}", _no_events),
            Mount("/neuroglancer/v/{token}", client),
        ],
        exception_handlers={IgneousError: _explain},
    )


def _client_folder() -> Path:
    package = find_spec("neuroglancer")
    if package is None or package.origin is None:
        raise InvalidParameter(
            "the viewer needs the package neuroglancer: pip install 'igneous-airflow[viewer]'"
        )
    return Path(package.origin).parent / "static" / "client"


class _Viewer:
    """Answers requests about views; the methods run in threads, since storage makes them wait."""

    def __init__(self, find_view: FindView, find_beneath: FindBeneath) -> None:
        self._find = find_view
        self._find_beneath = find_beneath

    def open(self, request: Request) -> Response:
        """A page that sends the browser to the client, with the state of the view."""
        view = request.path_params["view"]
        self._layers(view, request)
        text = _OPEN_PAGE.format(title=html.escape(view), view=html.escape(view), placeholder=BASE)
        return HTMLResponse(text)

    def state(self, request: Request) -> Response:
        """The viewer's state for a view."""
        view = request.path_params["view"]
        layers = [(view, name, url) for name, url in self._layers(view, request).items()]
        layers = [*self._find_beneath(view, request), *layers]
        titles = _titles([(name, url) for _, name, url in layers])
        shown = [
            Shown(title, f"data/{view}/{name}", Layer.open(url))
            for title, (view, name, url) in zip(titles, layers, strict=True)
        ]
        return JSONResponse(viewer_state(shown), headers={"Cache-Control": "no-store"})

    def data(self, request: Request) -> Response:
        """One file of a layer."""
        layers = self._layers(request.path_params["view"], request)
        url, path = layers.get(request.path_params["layer"]), request.path_params["path"]
        if url is None or not _is_inside(path) or leads_outside(url, path):
            return Response("there is no such file in this view", 404)
        stored = open_folder(url).read(path)
        if stored is None:
            return Response("there is no such file", 404)
        return _answer(stored, request)

    def _layers(self, view: str, request: Request) -> Mapping[str, str]:
        layers = self._find(view, request)
        if layers is None:
            raise InvalidParameter("there is no such view")
        return layers


def _titles(layers: Sequence[tuple[str, str]]) -> list[str]:
    """What people call layers of a name and an address: by their folders, if these differ."""
    folders = [url.rstrip("/").rpartition("/")[2] for _, url in layers]
    often = Counter(folders)
    return [
        folder if often[folder] == 1 else f"{folder} ({name})"
        for folder, (name, _) in zip(folders, layers, strict=True)
    ]


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    plain = path.isprintable() and "\\" not in path
    return plain and bool(parts) and not path.startswith("/") and ".." not in parts


def _answer(stored: StoredFile, request: Request) -> Response:
    """The file as stored where the browser can decompress it, or the range asked for."""
    headers = {"Cache-Control": "no-cache", "Accept-Ranges": "bytes"}
    wanted = request.headers.get("range")
    accepted = request.headers.get("accept-encoding", "")
    content: Buffer = stored.content
    if stored.compression and wanted is None and stored.compression in accepted:
        headers["Content-Encoding"] = stored.compression
    else:
        content = decompress_bytes(stored, _FILE_BYTES)
    if wanted is None:
        return _binary(content, headers)
    limits = _range(wanted, len(content))
    if limits is None:
        return Response(status_code=416, headers={"Content-Range": f"bytes */{len(content)}"})
    first, last = limits
    headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
    return _binary(memoryview(content)[first : last + 1], headers, 206)


def _binary(content: Buffer, headers: dict[str, str], status: int = 200) -> Response:
    return Response(bytes(content), status, headers=headers, media_type="application/octet-stream")


def _range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a range as HTTP writes it: RFC 9110, section 14; one range only."""
    unit, _, limits = header.partition("=")
    first, dash, last = limits.partition("-")
    if unit.strip() != "bytes" or not dash or "," in limits:
        return None
    try:
        if not first.strip():
            start, end = max(size - int(last), 0), size - 1
        else:
            start, end = int(first), min(int(last), size - 1) if last.strip() else size - 1
    except ValueError:
        return None
    return (start, end) if 0 <= start <= end else None


async def _no_events(request: Request) -> Response:  # noqa: ARG001
    """A stream that says nothing: the client waits for a Python process, which is not there."""

    async def silence() -> AsyncIterator[str]:
        while True:
            yield ": nothing\n\n"
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    return StreamingResponse(silence(), media_type="text/event-stream")


def _explain(request: Request, error: Exception) -> Response:  # noqa: ARG001
    status = 404
    if isinstance(error, AccessDenied):
        status = 403
    elif isinstance(error, TransientError):
        status = 503
    return Response(str(error), status)
