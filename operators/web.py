"""The plugin's web application: the page of runs, and the viewer; behind Airflow's login.

A run is shown to users who may read the DAG runs of its DAG. Loaded at the first request.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.base_user import BaseUser
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.api_fastapi.core_api.security import get_user
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from igneous_airflow.errors import IgneousError, RunNotFound
from igneous_airflow.operators.settings import runs_url
from igneous_airflow.overview import Filters, Overview, RunDetail, RunRow, layers_of
from igneous_airflow.run import Run
from igneous_airflow.viewer.app import VIEWS, viewer_app
from igneous_airflow.viewer.headers import PAGE, SecurityHeaders
from igneous_airflow.viewer.pool import Busy, PoolLimits, RequestPool

_PAGE = Path(__file__).parent / "page"
_LOGINS_AT_ONCE = 2
_RUNS_AT_ONCE = 8  # calls that look at runs: mostly they reckon, and keep Airflow from it
_bearer = HTTPBearer(auto_error=False)


@cache
def _overview() -> Overview:
    return Overview(runs_url())


class LoggedIn:
    """Lets requests of users who are logged in through, with the user in the request's state.

    A user without a login who opens a page, as by a link from a colleague, is asked to log in.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        # Airflow asks its database without leaving its event loop: many requests that come at once
        # must let others pass in between
        self._turns = asyncio.Semaphore(_LOGINS_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer others with 401 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            async with self._turns:
                request.state.igneous_user = await get_user(request, None, await _bearer(request))
        except HTTPException as refused:
            answer: Response = JSONResponse({"detail": refused.detail}, refused.status_code)
            if refused.status_code == 401 and "text/html" in request.headers.get("accept", ""):
                answer = RedirectResponse(get_auth_manager().get_url_login(next_url=_here(request)))
            await answer(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _here(request: Request) -> str:
    """The address of a request below Airflow's own, as a path."""
    return str(request.url.replace(scheme="", netloc=""))


async def _user(request: Request) -> BaseUser:
    user: BaseUser = request.state.igneous_user
    return user


async def _pool(request: Request) -> RequestPool:
    pool: RequestPool = request.app.state.pool
    return pool


User = Annotated[BaseUser, Depends(_user)]
# Airflow's own threads, which it has few of, never wait for storage
Pool = Annotated[RequestPool, Depends(_pool)]


def _may_read(user: BaseUser, run: Run | RunRow) -> bool:
    """Whether a user may see a run; one that no DAG launched, who may read all DAG runs."""
    dag = run.triggered_by.get("dag_id")
    allowed: bool = get_auth_manager().is_authorized_dag(
        method="GET",
        access_entity=DagAccessEntity.RUN,
        details=DagDetails(id=dag) if dag else None,
        user=user,
    )
    return allowed


def _readable(name: str, user: BaseUser) -> Run:
    run = _overview().run(name)
    if not _may_read(user, run):
        raise HTTPException(403, "you may not read the runs of this DAG")
    return run


def web_app() -> ASGIApp:
    """Make the application: `page/`, `page/api/`, `viewer/`."""
    app = FastAPI(title="Igneous", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.pool = RequestPool(PoolLimits(share=_RUNS_AT_ONCE))
    app.add_middleware(LoggedIn)
    app.add_exception_handler(IgneousError, _explain)
    app.add_api_route("/page/api/runs", _list_runs)
    app.add_api_route("/page/api/runs/{name}", _show_run)
    app.add_api_route("/page/api/runs/{name}/failures/{task}/{attempt}", _show_failure)
    app.mount("/page", SecurityHeaders(StaticFiles(directory=_PAGE, html=True), PAGE))
    app.mount("/viewer", viewer_app(_find_view, _find_beneath, views=app.state.pool))
    return SecurityHeaders(app)


class Asked(BaseModel):
    """Which runs to list."""

    layer: str = ""
    stage: str = ""
    state: str = ""
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=25, ge=1, le=200)


async def _list_runs(user: User, pool: Pool, asked: Annotated[Asked, Query()]) -> Response:
    """Some runs, newest first, that the user may see."""
    return await pool.run(VIEWS, lambda: JSONResponse(_listed(user, asked)))


def _listed(user: BaseUser, asked: Asked) -> dict[str, Any]:
    overview = _overview()
    known: dict[str, bool] = {}  # by DAG: an answer may cost a query

    def may_read(run: Run) -> bool:
        dag = run.triggered_by.get("dag_id", "")
        if dag not in known:
            known[dag] = _may_read(user, run)
        return known[dag]

    filters = Filters(asked.layer, asked.stage, asked.state)
    rows, total = overview.rows(filters, asked.offset, asked.limit, may_read)
    return {
        "runs": [row.model_dump(mode="json") | {"links": _links(row)} for row in rows],
        "total": total,
        "stages": overview.stages(may_read),
    }


async def _show_run(name: str, user: User, pool: Pool) -> Response:
    """All about a run."""
    return await pool.run(VIEWS, lambda: JSONResponse(_shown(_readable(name, user))))


def _shown(run: Run) -> dict[str, Any]:
    detail: RunDetail = _overview().detail(run.id)
    words = detail.plan.describe() if detail.plan else ""
    # what was remembered of the run may be older than its proof, or than the loss of it
    proved = Run.load(run.url).is_finished
    return detail.model_dump(mode="json") | {
        "links": _links(detail),
        "plan_in_words": words,
        "proved": proved,
    }


async def _show_failure(  # what the path names, and who asks
    name: str, task: int, attempt: int, user: User, pool: Pool
) -> Response:
    """How an attempt at a task failed, with its traceback."""

    def read() -> Response:
        failure = _overview().failure(_readable(name, user).id, task, attempt)
        return JSONResponse(failure.model_dump(mode="json"))

    return await pool.run(VIEWS, read)


def _links(run: RunRow) -> dict[str, str]:
    """Where else to look at a run, relative to the page."""
    is_shown = run.layer and run.was_launched
    links = {"View": f"../viewer/open/{quote(run.name)}"} if is_shown else {}
    dag, dag_run = run.triggered_by.get("dag_id"), run.triggered_by.get("dag_run_id")
    if dag and dag_run:
        links["DAG run"] = f"../../dags/{quote(dag)}/runs/{quote(dag_run)}"
        if group := run.triggered_by.get("group_id"):
            links["Task logs"] = f"{links['DAG run']}/tasks/group/{quote(group)}"
    return links


def _find_view(name: str, request: Request) -> Mapping[str, str] | None:
    """The layers of a run that the user may see, by their names in the viewer.

    A run that was only planned, or waits for approval, has no right to any layer.
    """
    with suppress(RunNotFound):
        run = _overview().launched(name)
        if run is not None and _may_read(request.state.igneous_user, run):
            return layers_of(run)
    return None


def _find_beneath(name: str, request: Request) -> list[tuple[str, str, str]]:
    """The image that belongs under the labels of a run, if the user may see a run on it."""
    user, overview = request.state.igneous_user, _overview()
    found = overview.image_beneath(overview.run(name), lambda run: _may_read(user, run))
    return [found] if found else []


async def _explain(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    status = 404 if isinstance(error, RunNotFound) else 503
    retry = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else {}
    return JSONResponse({"detail": str(error)}, status, headers=retry)
