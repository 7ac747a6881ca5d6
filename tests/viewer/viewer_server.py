"""Layers served by the viewer as a program serves them, and a client that sends paths as they are.

As a script: serve a folder, make requests, and print their statuses and the memory that it took.
"""

import gzip
import http.client
import json
import socket
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=named)
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        content = answer.read()
        if found.get("content-encoding") == "gzip":
            content = gzip.decompress(content)
        connection.close()
        return Answer(answer.status, found, content)


@contextmanager
def serving(views, **options):
    """Serve views; gives a client."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = viewer_app(lambda view, request: views.get(view), **options)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Client(listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def main(folder, requests):
    statuses = []
    with serving({"run": {"layer": f"file://{folder}"}}) as client:
        for path, headers in requests:
            connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=120)
            connection.request("GET", path, headers=headers)
            statuses.append(connection.getresponse().status)
            connection.close()
    # not ru_maxrss, which begins with the peak of the process that started this one
    status = Path("/proc/self/status").read_text()
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    sys.stdout.write(json.dumps({"statuses": statuses, "bytes": peak}))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
