"""`igneous-airflow view` as a program: whom it answers, and that it stops."""

import http.client
import signal
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

from igneous_airflow.geometry.bbox import Vec3
from igneous_airflow.testing.layers import random_voxels, write_layer


@pytest.fixture
def process(tmp_path):
    url = write_layer(tmp_path / "image", random_voxels(Vec3(16, 8, 8)))
    command = [sys.executable, "-m", "igneous_airflow", "view", url.removeprefix("file://")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def port(process):
    return urlsplit(process.stdout.readline()).port


def ask(port, path, host):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={"Host": host})
    answer = connection.getresponse()
    status, content = answer.status, answer.read()
    connection.close()
    return status, content


def test_only_pages_under_names_of_this_machine_are_answered(port):
    """A page of a foreign name may have that name lead here, to read what it shows."""
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
        assert ask(port, "/data/layers/image/info", host)[0] == 200
    for host in ("example.org", f"example.org:{port}", "127.0.0.1.example.org", "", "[::1]"):
        for path in ("/data/layers/image/info", "/open/layers", "/state/layers"):
            status, content = ask(port, path, host)
            assert status == 400
            assert b"image" not in content


def test_a_browser_that_is_open_does_not_keep_it_from_stopping(process, port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/neuroglancer/events/1")
    assert connection.getresponse().readline() == b": nothing\n"
    process.send_signal(signal.SIGINT)
    process.wait(30)
    connection.close()
