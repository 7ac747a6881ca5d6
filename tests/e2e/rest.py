"""Calls of Airflow's REST API, as a CI job makes them; used by all tests with a real Airflow."""

import json
import urllib.request
from typing import Any

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # servers of this machine


def call_airflow(
    base: str, token: str, method: str, path: str, body: Any = None, accept: str = "json"
) -> Any:
    """Call the API of the Airflow at an address; raises HTTPError."""
    request = urllib.request.Request(
        base + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Content-Type": "application/json",
            "Accept": f"application/{accept}",
            "Authorization": f"Bearer {token}",
        },
    )
    with OPENER.open(request, timeout=60) as answer:
        content = answer.read()
    return json.loads(content) if accept == "json" and content else content.decode()
