"""HTTP for a Hub on this machine: requests, answers, faults on demand, and the port that all of it comes through.

Knows nothing of repositories; `loopback.py` does.
"""

import json
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit


CHUNK = 64 * 1024


@dataclass
class Request:
    """One request as it came, and what became of it."""

    port: str  # "hub" or "cdn"
    method: str
    target: str  # path and query, as sent
    headers: dict[str, str]  # names in lower case
    body: bytes = b""
    received: int = 0  # bytes of the body that arrived
    status: int | None = None  # None: no answer (yet)
    sent: int = 0  # bytes of the answer's body that left
    at_s: float = field(default_factory=time.monotonic)

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")


@dataclass
class Reply:
    """An answer: a JSON value or bytes, with headers."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return self.value if isinstance(self.value, bytes) else json.dumps(self.value).encode()


class HubError(Exception):
    """An answer that is no success. Clients choose their exception by `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        super().__init__(message)
        known = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply({"error": message}, status, known | {k.replace("_", "-"): v for k, v in headers.items()})


@dataclass
class Fault:
    """Trouble for requests whose method and target match, `times` times (None: always)."""

    pattern: str
    method: str | None = None
    times: int | None = None
    status: int = 0  # 0: what the Hub answers
    headers: dict[str, str] = field(default_factory=dict)
    cut_at: int | None = None  # bytes of the body, theirs or ours, after which the connection drops
    seconds: float = 0
    pause_at: int = 0  # bytes of the body after which the pause comes; 0: before the answer

    def takes(self, request: Request) -> bool:
        """Whether this request has to suffer; counts it if so."""
        if self.method not in (None, request.method) or not re.search(self.pattern, request.target):
            return False
        if self.times is not None:
            self.times -= 1
        return self.times is None or self.times >= 0


class Site(Protocol):
    """What stands behind a port."""

    requests: list[Request]
    faults: list[Fault]
    bugs: list[str]
    lock: Any
    closing: threading.Event

    def answer(self, request: Request) -> Reply:
        """What to send back."""


class Port(ThreadingHTTPServer):
    """One origin. Clients keep several connections open, hence the threads."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: Site, name: str):
        self.hub, self.name = hub, name
        super().__init__(("127.0.0.1", 0), _Connection)

    def handle_error(self, *_: object) -> None:
        """Clients may leave as they like; all else is a bug of this server."""
        trace = traceback.format_exc()
        if "ConnectionError" not in trace and "ConnectionResetError" not in trace and "BrokenPipeError" not in trace:
            self.hub.bugs.append(trace)


class _Connection(BaseHTTPRequestHandler):
    """HTTP, and the faults that happen below the answers."""

    server: Port
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def serve(self) -> None:
        hub = self.server.hub
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.name, self.command, self.path, headers)
        hub.requests.append(request)
        with hub.lock:
            faults = [fault for fault in hub.faults if fault.takes(request)]
        with suppress(ConnectionError):
            request.body = b"".join(self._body(request, faults))
            self._wait(sum(fault.seconds for fault in faults if not fault.pause_at))
            failing = next((fault for fault in faults if fault.status), None)
            reply = Reply({"error": "trouble"}, failing.status, failing.headers) if failing else hub.answer(request)
            self._send(request, reply, [] if request.received else faults)
            return
        self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def _body(self, request: Request, faults: list[Fault]) -> Iterator[bytes]:
        """What the client sends, with a length or in chunks."""
        if request.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline() or b"0", 16):
                yield from self._pieces(request, size, faults)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield from self._pieces(request, int(request.headers.get("content-length", 0)), faults)

    def _pieces(self, request: Request, size: int, faults: list[Fault]) -> Iterator[bytes]:
        while size:
            piece = self.rfile.read(min(CHUNK, size))
            if not piece:
                raise ConnectionError("the client went away")
            size -= len(piece)
            before, request.received = request.received, request.received + len(piece)
            self._suffer(before, request.received, faults)
            yield piece

    def _send(self, request: Request, reply: Reply, faults: list[Fault]) -> None:
        body = reply.body
        request.status = reply.status
        self.send_response(reply.status)
        for name, value in (
            {"Content-Type": "application/json", "Content-Length": str(len(body))} | reply.headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        for start in range(0, len(body), CHUNK):
            piece = body[start : start + CHUNK]
            self.wfile.write(piece)
            request.sent += len(piece)
            self._suffer(start, start + len(piece), faults)

    def _suffer(self, before: int, after: int, faults: list[Fault]) -> None:
        """Pause or drop the connection if that was to happen between these two bytes of the body."""
        for fault in faults:
            if fault.pause_at and before < fault.pause_at <= after:
                self._wait(fault.seconds)
            if fault.cut_at is not None and before <= fault.cut_at < after:
                with suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                raise ConnectionError("cut")

    def _wait(self, seconds: float) -> None:
        if seconds and self.server.hub.closing.wait(seconds):
            raise ConnectionError("the Hub closes")

    def log_message(self, *_: object) -> None:
        """Requests are in `hub.requests`."""
