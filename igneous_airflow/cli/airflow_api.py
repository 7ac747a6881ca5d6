"""Airflow's REST API, as `igneous-airflow trigger` uses it.

Only the standard library is needed. Secrets come from the environment, and are never printed.
"""

import json
import os
import time
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from igneous_airflow.errors import AccessDenied, InvalidParameter, StorageUnavailable

_TIMEOUT = 60.0
_PATIENCE = 300.0  # seconds that the server may be away, as for an upgrade


@dataclass
class AirflowApi:
    """Airflow's REST API, version 2, at an address."""

    url: str
    token: str = ""

    @classmethod
    def of_environment(cls) -> Self:
        """Log in as the environment says; raises InvalidParameter when it does not say enough."""
        missing = [] if os.environ.get("AIRFLOW_URL") else ["AIRFLOW_URL"]
        token = os.environ.get("AIRFLOW_TOKEN", "")
        user, password = os.environ.get("AIRFLOW_USER", ""), os.environ.get("AIRFLOW_PASSWORD", "")
        if not token and not (user and password):
            missing.append("AIRFLOW_USER and AIRFLOW_PASSWORD, or AIRFLOW_TOKEN")
        if missing:
            raise InvalidParameter(f"set {' and '.join(missing)} in the environment")
        api = cls(os.environ["AIRFLOW_URL"].rstrip("/"), token)
        if not token:
            api.login(user, password)
        return api

    def login(self, user: str, password: str) -> None:
        """Get a token; raises AccessDenied."""
        answer = self.call("POST", "/auth/token", {"username": user, "password": password})
        self.token = answer["access_token"]

    def call(self, method: str, path: str, body: object = None, *, accept: str = "json") -> Any:
        """Return the answer, as JSON data or, for another kind, as text.

        Raises HTTPError for an answer that says no, AccessDenied where it is about permissions,
        StorageUnavailable when the server does not answer for several minutes.
        """
        headers = {"Content-Type": "application/json", "Accept": f"application/{accept}"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}{path}", data, headers, method=method)  # noqa: S310
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with urlopen(request, timeout=_TIMEOUT) as answer:  # noqa: S310
                    content = answer.read().decode()
                return json.loads(content) if accept == "json" else content
            except HTTPError as error:
                if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                    raise AccessDenied(
                        f"{self.url} refuses {method} {path} ({error.code}): check AIRFLOW_USER "
                        "and AIRFLOW_PASSWORD, or AIRFLOW_TOKEN, and what that user may do"
                    ) from error
                if error.code < HTTPStatus.INTERNAL_SERVER_ERROR or time.monotonic() > deadline:
                    raise
            except (URLError, OSError) as error:
                if method != "GET" or time.monotonic() > deadline:
                    raise StorageUnavailable(f"{self.url} does not answer: {error}") from error
            time.sleep(5)

    def find(self, path: str) -> Any:
        """Return the answer to GET as JSON data, None where there is nothing."""
        try:
            return self.call("GET", path)
        except HTTPError as error:
            if error.code != HTTPStatus.NOT_FOUND:
                raise
            return None


def reason_of(error: HTTPError) -> str:
    """Airflow's words for an answer that says no."""
    text = error.read().decode(errors="replace")
    try:
        # after the first line, Airflow shows the schema of the parameter
        return str(json.loads(text)["detail"]).partition("\n")[0]
    except (ValueError, KeyError, TypeError):
        return text or str(error)
