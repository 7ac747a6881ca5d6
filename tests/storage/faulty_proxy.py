"""A server in front of a real one, which lets requests through, or spoils them as a test says.

Other files load this one by its path: tests are no package.
"""

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_OWN_HEADERS = frozenset({"transfer-encoding", "connection", "date", "server", "content-length"})


@dataclass
class Fault:
    """What happens to the next `times` requests of a method that have `part` in them.

    What is compared is a request's path with, for SQS, the operation after it. The answer is late
    by `delay` seconds. With a `status` the request is not let through: it is answered with the
    `body`, or with S3's words for the `code` of an error. With `cut` the connection ends in the
    middle of the request's body ("request"), or of the answer's ("answer"; where that is empty, no
    answer comes), or is reset before the request is let through ("reset"). `ask` changes the body
    that is let through, `again` times more than once; `tell` makes the answer's body, of that of
    the request and of the real answer. The `headers` take the place of those of the server's
    answer.
    """

    method: str = ""
    part: str = ""
    times: int = 1
    delay: float = 0
    status: int = 0
    code: str = "InternalError"
    body: str = ""
    cut: str = ""
    ask: Callable[[bytes], bytes] = lambda body: body
    again: int = 0
    tell: Callable[[bytes, bytes], bytes] = lambda _body, answer: answer
    headers: dict[str, str] = field(default_factory=dict)

    def takes(self, method: str, words: str) -> bool:
        return self.times > 0 and self.method in ("", method) and self.part in words


@dataclass
class Proxy:
    """Where the proxy answers, and what it is to do and has seen."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    page: int = 0  # names that one answer lists at most, if set
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, method: str, words: str) -> Fault:
        """Count a request, and say what is to happen to it."""
        with self.lock:
            self.requests.append(f"{method} {words}")
            for fault in self.faults:
                if fault.takes(method, words):
                    fault.times -= 1
                    return fault
        return Fault()


@contextmanager
def running(behind: str) -> Iterator[Proxy]:
    """Run a proxy of the server `behind`, on a free port of this machine only."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    handler.proxy, handler.behind = proxy, urlsplit(behind).netloc
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # many workers connect at once

    def handle_error(self, *_: object) -> None:
        """Say nothing: clients end connections as they like."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy
    behind: str

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def answer(self) -> None:
        operation = self.headers.get("X-Amz-Target", "")
        fault = self.proxy.note(self.command, f"{self.path} {operation}".rstrip())
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(fault.delay)
        if fault.cut == "request":
            self._forward_half(body)
            self.close_connection = True
        elif fault.cut == "reset":
            self._reset()
        elif fault.status:
            self._refuse(fault)
        else:
            self._pass_on(body, fault)

    def _forward_half(self, body: bytes) -> None:
        """Begin the upload at the server and never end it."""
        server = http.client.HTTPConnection(self.behind, timeout=30)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            server.putheader(name, value)
        server.endheaders(body[: len(body) // 2])
        server.close()

    def _reset(self) -> None:
        """End the connection with the loss of all that is on its way."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _refuse(self, fault: Fault) -> None:
        error = f"<Error><Code>{fault.code}</Code><Message>as told</Message></Error>"
        content = (fault.body or f'<?xml version="1.0"?>{error}').encode()
        self._begin(fault.status, [], len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _pass_on(self, body: bytes, fault: Fault) -> None:
        path = self.path
        if self.proxy.page and "list-type" in path:
            path += f"&max-keys={self.proxy.page}"
        for _ in range(1 + fault.again):
            response, content = self._ask_server(path, fault.ask(body))
        content = fault.tell(body, content)
        # the answer to HEAD has no body, yet the length of one
        length = len(content) or int(response.getheader("Content-Length") or 0)
        if fault.cut == "answer":
            self.close_connection = True
            if not content:
                return
            content = content[: len(content) // 2]
        kept = [pair for pair in response.getheaders() if pair[0].lower() not in fault.headers]
        self._begin(response.status, [*kept, *fault.headers.items()], length)
        self.wfile.write(content)

    def _ask_server(self, path: str, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        own = self.headers.items()
        headers = {name: value for name, value in own if name.lower() != "content-length"}
        server = http.client.HTTPConnection(self.behind, timeout=30)
        try:
            server.request(self.command, path, body, headers)
            response = server.getresponse()
            return response, response.read()
        finally:
            server.close()

    def _begin(self, status: int, headers: list[tuple[str, str]], length: int) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _OWN_HEADERS:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


for _method in ("GET", "PUT", "POST", "DELETE", "HEAD"):
    setattr(_Handler, f"do_{_method}", _Handler.answer)
