"""What every answer of the viewer tells a browser."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.layers import random_voxels, write_layer
from igneous_airflow.viewer.headers import SecurityHeaders

CHUNK = "8_8_40/0-16_0-8_0-8"


@pytest.fixture
def client(tmp_path, serve):
    url = write_layer(tmp_path / "image", random_voxels(Vec3(16, 8, 8)))
    return serve({"run": {"image": url}})


def directives(answer):
    policy = answer.headers["content-security-policy"]
    return dict(part.strip().partition(" ")[::2] for part in policy.split(";"))


PAGES = ["/open/run", "/page/open.js"]
CLIENT = ["/neuroglancer/v/1/"]
OTHERS = [
    "/state/run",
    "/state/none",
    "/data/run/image/info",
    "/data/run/image/secret",
    "/data/run/none/info",
    "/nothing",
    "/page/nothing",
]


@pytest.mark.parametrize("path", PAGES + CLIENT + OTHERS)
def test_every_answer_has_them(client, path):
    answer = client.get(path)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-frame-options"] == "SAMEORIGIN"
    assert answer.headers["referrer-policy"] == "no-referrer"
    policy = directives(answer)
    assert policy["default-src"] == "'none'"
    assert policy["frame-ancestors"] == "'self'"
    assert policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'none'"
    assert "unsafe-eval" not in policy.get("script-src", "").replace("wasm-unsafe-eval", "")
    assert "unsafe-inline" not in policy.get("script-src", "")
    assert "*" not in answer.headers["content-security-policy"]
    assert answer.headers["content-type"]


@pytest.mark.parametrize("path", OTHERS[:5])
def test_data_and_messages_run_nothing_and_show_nothing(client, path):
    policy = directives(client.get(path))
    assert "sandbox" in policy
    assert "script-src" not in policy


@pytest.mark.parametrize("path", PAGES)
def test_a_page_runs_only_the_scripts_of_this_server(client, path):
    policy = directives(client.get(path))
    assert policy["script-src"] == "'self'"
    assert policy["style-src"] == "'self'"
    assert policy["connect-src"] == "'self'"
    assert "sandbox" not in policy


def test_the_page_that_opens_a_view_has_no_script_of_its_own(client):
    text = client.get("/open/run").text
    assert text.count("<script") == 1
    assert '<script src="../page/open.js" defer></script>' in text
    assert client.get("/page/open.js").headers["content-type"].startswith("text/javascript")


def test_the_client_asks_only_this_server(client):
    policy = directives(client.get("/neuroglancer/v/1/"))
    assert policy["connect-src"] == "'self'"
    assert policy["script-src"] == "'self' 'wasm-unsafe-eval'"
    assert policy["worker-src"] == "'self' blob:"


def test_an_application_inside_keeps_the_policy_that_it_has_chosen():
    async def inside(scope, receive, send):
        answer = PlainTextResponse("x", headers={"Content-Security-Policy": "default-src 'self'"})
        await answer(scope, receive, send)

    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(SecurityHeaders(inside)({"type": "http", "method": "GET"}, None, send))
    found = [value for name, value in sent[0]["headers"] if name == b"content-security-policy"]
    assert found == [b"default-src 'self'"]
