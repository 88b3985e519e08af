"""A Hugging Face Hub on this machine, for tests of what pushes to it and pulls from it.

It answers the real `huggingface_hub`, and fails on demand:

    with HubServer() as hub:
        hub.add_repo("allenai/wrn50-popup", {"config.json": b"{}"})
        hub.fail("GET .*config.json", "tamper")

A client finds it with HF_ENDPOINT=`hub.url` and HF_HUB_DISABLE_XET=1, and logs in with a token of `hub.users`. Set
HF_HUB_DISABLE_TELEMETRY=1 as well, or it asks for /api/agent-harnesses where a test expects no request.
"""

from __future__ import annotations

import re
import socket
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

from tests import hub_api
from tests.hub_api import Reply
from tests.hub_store import Hub

Kind = Literal["drop", "refuse", "reset", "tamper"] | int


@dataclass
class Fault:
    """One way to fail, for requests whose "METHOD /path?query" matches; `times` counts down."""

    pattern: re.Pattern[str]
    kind: Kind
    times: int
    at: int | None
    retry_after: int | None

    @property
    def is_of_content(self) -> bool:
        """Whether it strikes when a file's content is sent; any other answers in place of the Hub."""
        return self.kind in ("drop", "reset", "tamper")


class HubServer(Hub):
    """A Hub that listens, from `with` on.

    Attributes:
        requests: method and path of every request so far, in order; large files come from paths under /cdn.
        ranges: what was asked of files in part, such as "bytes=1000-", in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self._faults: list[Fault] = []
        self._ports = [0, 0]
        self._servers: list[_Server] = []

    def start(self) -> None:
        """Listen; after `stop`, on the same ports again."""
        self._servers = [_Server(self, port) for port in self._ports]
        self._ports = [server.server_port for server in self._servers]
        # Two origins, as huggingface.co and its CDN are: the client follows a redirect to the same one with its token.
        self.url, self.cdn = (f"http://127.0.0.1:{port}" for port in self._ports)
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Cut every connection and refuse new ones, as when the network is down."""
        while self._servers:
            self._servers.pop().stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def fail(
        self, pattern: str, kind: Kind, times: int = 1, *, at: int | None = None, retry_after: int | None = None
    ) -> Fault:
        """Fail the next requests that match.

        Args:
            pattern: regular expression, searched in "METHOD /path?query".
            kind: an HTTP status to answer with; or "refuse": close the connection without an answer; or, where the
                content of a file is sent, "drop": close the connection in its middle, "reset": break it off there,
                "tamper": alter a byte.
            times: how often.
            at: the byte of the body before which the connection ends, or which is altered; the middle one if None.
            retry_after: seconds that the client is told to wait.

        Returns:
            The fault, whose `times` is how often it is still to come.
        """
        fault = Fault(re.compile(pattern), kind, times, at, retry_after)
        self._faults.append(fault)
        return fault

    def next_fault(self, request: str, *, of_content: bool) -> Fault | None:
        """The fault that strikes this request now; it is counted."""
        with self.lock:
            for fault in self._faults:
                if fault.times > 0 and fault.is_of_content == of_content and fault.pattern.search(request):
                    fault.times -= 1
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    """One port; knows its connections and their threads, so as to end them when it stops."""

    request_queue_size = 64

    def __init__(self, hub: HubServer, port: int) -> None:
        self.hub = hub
        self.threads: dict[Any, threading.Thread] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self.process_request_thread, args=(request, client_address), daemon=True)
        self.threads[request] = thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.threads.pop(request, None)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # of a client that was killed, or that was cut off
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self.shutdown()
        for connection, thread in list(self.threads.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def answer(self) -> None:
        hub = self.server.hub
        hub.requests.append((self.command, self.path))
        hub.ranges += self.headers.get_all("Range", [])
        body = self._body()
        if body is None:
            self.close_connection = True
            return
        fault = hub.next_fault(f"{self.command} {self.path}", of_content=False)
        if fault is None:
            self._send(hub_api.reply(hub, self.command, self.path, self.headers, body))
        elif isinstance(fault.kind, int):
            self._send(hub_api.failure(fault.kind, fault.retry_after))
        else:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815  # names that http.server wants

    def _body(self) -> bytes | None:
        """What the client sent; None if it broke off."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            return body if len(body) == length else None
        body = b""
        while line := self.rfile.readline().strip():
            size = int(line, 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                return body
        return None

    def _send(self, reply: Reply) -> None:
        request, body, fault = f"{self.command} {self.path}", reply.body, None
        if reply.is_file and self.command == "GET":
            fault = self.server.hub.next_fault(request, of_content=True)
        self.send_response(reply.status)
        for key, value in {"X-Request-Id": "Root=1-test", **reply.headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if fault and body:
            at = len(body) // 2 if fault.at is None else min(fault.at, len(body) - 1)
            body = body[:at] + (bytes([body[at] ^ 1]) + body[at + 1 :] if fault.kind == "tamper" else b"")
        if self.command != "HEAD":
            self.wfile.write(body)
        if fault and fault.kind != "tamper":
            self._hang_up(broken=fault.kind == "reset")

    def _hang_up(self, *, broken: bool) -> None:
        self.close_connection = True
        if broken:  # without a goodbye: not to linger makes the kernel send RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.rfile.close()
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: what was asked is in `HubServer.requests`."""
