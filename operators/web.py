"""The plugin's web application: the page of runs, and the viewer; behind Airflow's login.

A run is shown to users who may read the DAG runs of its DAG. Loaded at the first request.
"""

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
from starlette.types import ASGIApp, Receive, Scope, Send

from igneous_airflow.errors import IgneousError, RunNotFound
from igneous_airflow.ledger import Failure
from igneous_airflow.operators.settings import runs_url
from igneous_airflow.overview import Filters, Overview, RunDetail, RunRow, layers_of
from igneous_airflow.run import Run
from igneous_airflow.viewer.app import viewer_app

_PAGE = Path(__file__).parent / "page"
_bearer = HTTPBearer(auto_error=False)


@cache
def _overview() -> Overview:
    return Overview(runs_url())


class LoggedIn:
    """Lets requests of users who are logged in through, with the user in the request's state.

    Who opens a page without being logged in, as by a link from a colleague, is asked to log in.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer others with 401 or 403."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
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


def _user(request: Request) -> BaseUser:
    user: BaseUser = request.state.igneous_user
    return user


User = Annotated[BaseUser, Depends(_user)]


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


def _run(name: str, user: User) -> Run:
    run = _overview().run(name)
    if not _may_read(user, run):
        raise HTTPException(403, "you may not read the runs of this DAG")
    return run


ReadableRun = Annotated[Run, Depends(_run)]


def web_app() -> FastAPI:
    """Make the application: `page/`, `page/api/`, `viewer/`."""
    app = FastAPI(title="Igneous", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(LoggedIn)
    app.add_exception_handler(IgneousError, _explain)
    app.add_api_route("/page/api/runs", _list_runs)
    app.add_api_route("/page/api/runs/{name}", _show_run)
    app.add_api_route("/page/api/runs/{name}/failures/{task}/{attempt}", _show_failure)
    app.mount("/page", StaticFiles(directory=_PAGE, html=True))
    app.mount("/viewer", viewer_app(_find_view, _find_beneath))
    return app


def _list_runs(
    user: User,
    layer: str = "",
    stage: str = "",
    state: str = "",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=200)] = 25,
) -> dict[str, Any]:
    """Some runs, newest first, that the user may see."""
    overview = _overview()
    known: dict[str, bool] = {}  # by DAG: an answer may cost a query

    def may_read(run: Run) -> bool:
        dag = run.triggered_by.get("dag_id", "")
        if dag not in known:
            known[dag] = _may_read(user, run)
        return known[dag]

    rows, total = overview.rows(Filters(layer, stage, state), offset, limit, may_read)
    return {
        "runs": [row.model_dump() | {"links": _links(row)} for row in rows],
        "total": total,
        "stages": overview.stages(),
    }


def _show_run(run: ReadableRun) -> dict[str, Any]:
    """All about a run."""
    detail: RunDetail = _overview().detail(run.id)
    words = detail.plan.describe() if detail.plan else ""
    # what was remembered of the run may be older than its proof, or than the loss of it
    proved = Run.load(run.url).is_finished
    return detail.model_dump() | {
        "links": _links(detail),
        "plan_in_words": words,
        "proved": proved,
    }


def _show_failure(run: ReadableRun, task: int, attempt: int) -> Failure:
    """How an attempt at a task failed, with its traceback."""
    return _overview().failure(run.id, task, attempt)


def _links(run: RunRow) -> dict[str, str]:
    """Where else to look at a run, relative to the page."""
    links = {"View": f"../viewer/open/{run.name}"} if run.layer else {}
    dag, dag_run = run.triggered_by.get("dag_id"), run.triggered_by.get("dag_run_id")
    if dag and dag_run:
        links["DAG run"] = f"../../dags/{quote(dag)}/runs/{quote(dag_run)}"
        if group := run.triggered_by.get("group_id"):
            links["Task logs"] = f"{links['DAG run']}/tasks/group/{quote(group)}"
    return links


def _find_view(name: str, request: Request) -> Mapping[str, str] | None:
    """The layers of a run that the user may see, by their names in the viewer."""
    with suppress(RunNotFound):
        run = _overview().run(name)
        if _may_read(_user(request), run):
            return layers_of(run)
    return None


def _find_beneath(name: str, request: Request) -> list[tuple[str, str, str]]:
    """The image that belongs under the labels of a run, if the user may see a run on it."""
    user, overview = _user(request), _overview()
    found = overview.image_beneath(overview.run(name), lambda run: _may_read(user, run))
    return [found] if found else []


def _explain(request: Request, error: Exception) -> JSONResponse:  # noqa: ARG001
    return JSONResponse({"detail": str(error)}, 404 if isinstance(error, RunNotFound) else 503)
