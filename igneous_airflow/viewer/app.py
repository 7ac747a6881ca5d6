"""The web application that shows layers: the Neuroglancer client, and the layers' files.

A *view* is a few layers under names; its caller says which views there are.
Nothing else is ever opened: a path that a browser names is one of a view's layer and of the format,
or there is no such file.
"""

import html
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from igneous_airflow.errors import IgneousError
from igneous_airflow.viewer.client import client_routes
from igneous_airflow.viewer.files import Answer, FileResponse, Wanted, read_answer
from igneous_airflow.viewer.headers import PAGE, SecurityHeaders
from igneous_airflow.viewer.layers import OpenLayers, storage_of
from igneous_airflow.viewer.memory import MemoryBudget, Reservation
from igneous_airflow.viewer.pool import RequestPool
from igneous_airflow.viewer.refusals import NotServed, refuse
from igneous_airflow.viewer.state import Shown, viewer_state

#: The layers of a view, by their names, for the user of a request; None without such a view.
FindView = Callable[[str, Request], Mapping[str, str] | None]
#: What else to show beneath the layers of a view: other views, their layers' names and addresses.
FindBeneath = Callable[[str, Request], Sequence[tuple[str, str, str]]]

_PAGE = Path(__file__).parent / "page"
#: What knows the views; in a pool it is a storage like others.
VIEWS = "the runs folder"


def _nothing(view: str, request: Request) -> Sequence[tuple[str, str, str]]:  # noqa: ARG001
    return ()


def viewer_app(
    find_view: FindView, find_beneath: FindBeneath = _nothing, *, views: RequestPool | None = None
) -> ASGIApp:
    """The application; it may be mounted below any path. Raises InvalidParameter without client.

    `find_view` is called in threads of the pool `views`, or of the same pool as what waits for
    layers.
    """
    viewer = _Viewer(find_view, find_beneath, views)
    as_page = [Middleware(SecurityHeaders, policy=PAGE)]
    app = Starlette(
        routes=[
            Route("/open/{view}", viewer.open, middleware=as_page),
            Route("/state/{view}", viewer.state),
            Route("/data/{view}/{layer}/{path:path}", viewer.data),
            Mount("/page", StaticFiles(directory=_PAGE), middleware=as_page),
            *client_routes(),
        ],
        exception_handlers={IgneousError: refuse},
    )
    return SecurityHeaders(app)


class _Viewer:
    """Answers requests about views."""

    def __init__(
        self, find_view: FindView, find_beneath: FindBeneath, views: RequestPool | None
    ) -> None:
        self._find = find_view
        self._find_beneath = find_beneath
        self._pool = RequestPool()
        self._views = views or self._pool
        self._budget = MemoryBudget()
        self._layers = OpenLayers()
        self._page = (_PAGE / "open.html").read_text()

    async def open(self, request: Request) -> Response:
        """A page that sends the browser to the client, with the state of the view."""
        view = request.path_params["view"]
        await self._view(request)
        return HTMLResponse(self._page.format(view=html.escape(view)))

    async def state(self, request: Request) -> Response:
        """The viewer's state for a view."""
        view, layers = request.path_params["view"], await self._view(request)
        # each storage is asked for itself, so that others are not kept waiting where one hangs
        storages = " and ".join(sorted({storage_of(url) for url in layers.values()}))
        beneath = partial(self._find_beneath, view, request)
        found = list(await self._pool.run(storages or VIEWS, beneath))
        found += [(view, name, url) for name, url in layers.items()]
        titles = _titles([(name, url) for _, name, url in found])
        shown = [
            await self._pool.run(storage_of(one[2]), partial(self._shown, title, *one))
            for title, one in zip(titles, found, strict=True)
        ]
        return JSONResponse(viewer_state(shown), headers={"Cache-Control": "no-store"})

    def _shown(self, title: str, view: str, name: str, url: str) -> Shown:
        path = f"data/{quote(view, safe='')}/{quote(name, safe='')}"
        return Shown.of(title, path, self._layers.open(url))

    async def data(self, request: Request) -> Response:
        """One file of a layer, or a part of it."""
        layers, name = await self._view(request), request.path_params["layer"]
        if name not in layers:
            raise NotServed("there is no such layer in this view")
        with ExitStack() as stack:
            held = Reservation(self._budget)
            stack.callback(held.close)
            url, path = layers[name], request.path_params["path"]
            wanted = Wanted.of(request.method, request.headers)
            read = partial(self._read, url, path, wanted, held)
            answer = await self._pool.run(storage_of(url), read)
            return FileResponse(answer, stack.pop_all().close)

    def _read(self, url: str, path: str, wanted: Wanted, held: Reservation) -> Answer:
        found = self._layers.find(url, path)
        if found is not None:
            layer, file = found
            answer = read_answer(layer.folder, file, wanted, held)
            if answer is not None:
                return answer
        raise NotServed("there is no such file")

    async def _view(self, request: Request) -> Mapping[str, str]:
        """The layers of the view that a request names; raises NotServed."""
        find = partial(self._find, request.path_params["view"], request)
        layers = await self._views.run(VIEWS, find)
        if layers is None:
            raise NotServed("there is no such view")
        return layers


def _titles(layers: Sequence[tuple[str, str]]) -> list[str]:
    """What people call layers of a name and an address: by their folders, if these differ."""
    folders = [url.rstrip("/").rpartition("/")[2] for _, url in layers]
    often = Counter(folders)
    return [
        folder if often[folder] == 1 else f"{folder} ({name})"
        for folder, (name, _) in zip(folders, layers, strict=True)
    ]
