"""The Airflow plugin; loaded through the entry point in every process of Airflow, so kept light."""

from typing import TYPE_CHECKING

from airflow.plugins_manager import AirflowPlugin

from igneous_airflow.operators.conf_guard import ConfGuard
from igneous_airflow.operators.links import NeuroglancerLink

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_PREFIX = "/igneous"


class LazyApp:
    """The web application, which is imported at its first request: only API servers need it."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Pass a request on."""
        if self._app is None:
            from igneous_airflow.operators.web import web_app

            self._app = web_app()
        await self._app(scope, receive, send)


class IgneousPlugin(AirflowPlugin):
    """The page of runs in Airflow's navigation, the viewer, and links to it."""

    name = "igneous"
    fastapi_root_middlewares = [
        {"middleware": ConfGuard, "args": [], "kwargs": {}, "name": "Igneous: no credentials"}
    ]
    fastapi_apps = [{"app": LazyApp(), "url_prefix": _PREFIX, "name": "Igneous"}]
    external_views = [
        {
            "name": "Igneous",
            "href": f"{_PREFIX}/page/",
            "destination": "nav",
            "url_route": "igneous",
        }
    ]
    operator_extra_links = [NeuroglancerLink()]
