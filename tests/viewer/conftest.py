"""The viewer served by a real server, and a client that sends paths as they are written."""

import gzip
import http.client
import socket
import threading
import time
from dataclasses import dataclass

import pytest
import uvicorn

from igneous_airflow.viewer.app import viewer_app


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def text(self):
        return self.content.decode()


@dataclass(frozen=True)
class Client:
    port: int

    def get(self, path, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=named)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        content = answer.read()
        if found.get("content-encoding") == "gzip":
            content = gzip.decompress(content)
        connection.close()
        return Answer(answer.status, found, content)


@pytest.fixture
def serve():
    """Serve views until the end of the test; gives a client."""
    running = []

    def start(views):
        listener = socket.create_server(("127.0.0.1", 0))
        app = viewer_app(lambda view, request: views.get(view))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread, listener))
        while not server.started:
            time.sleep(0.01)
        return Client(listener.getsockname()[1])

    yield start
    for server, thread, listener in running:
        server.should_exit = True
        thread.join(10)
        listener.close()
