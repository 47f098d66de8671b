"""The server: static files, JSON, and streams of events, on 127.0.0.1.

    GET  TOKEN/                       the page
    GET  TOKEN/static/NAME            its files
    GET  TOKEN/api/runs               the runs, and the names of samplers and the like
    POST TOKEN/api/training           a run's metrics and grids, see `training`
    GET  TOKEN/grids/RUN/NAME         a grid of samples that a run has written
    POST TOKEN/api/PANEL              a panel's work: a stream of JSON, one event a line; also
                                      "describe" of a model and "code" of a view

A stream ends when the page closes it, and so does its work.
"""

import contextlib
import json
import select
import socket
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any

from diffjax.errors import UserError
from diffjax.experiment.own_settings import names
from diffjax.playground import training
from diffjax.playground.guard import HEADERS, Guard, Refusal, new_token
from diffjax.playground.panels import PANELS
from diffjax.playground.runs import Runs
from diffjax.playground.values import REFUSED, Values
from diffjax.playground.worker import Report, Worker

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
SECONDS = 30  # that a request may take to arrive


class Server(ThreadingHTTPServer):
    """The playground of some runs."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, runs: Runs, port: int) -> None:
        """Listens; `serve_forever` answers.

        Args:
          runs: what may be looked at.
          port: 0 for any that is free.

        Raises:
          UserError: the port is in use or not allowed.
        """
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error).rstrip(".")
            raise UserError(
                f"--port={port}: {reason}: choose another, or --port=0 for any that is free"
            ) from error
        self.guard = Guard(new_token(), self.server_address[1])
        self.runs, self.worker = runs, Worker()

    @property
    def address(self) -> str:
        """Where the page is."""
        return f"http://127.0.0.1:{self.guard.port}/{self.guard.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of connections that a browser drops."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS
    server_version, sys_version = "diffjax", ""

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, method: Callable[[str], None]) -> None:
        try:
            method(self.server.guard.path(self.path, self.headers))  # type: ignore[arg-type]
        except Refusal as refusal:
            self._json({"error": refusal.line}, status=refusal.status)
        except UserError as error:
            self._json({"error": str(error)}, status=400)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _get(self, path: str) -> None:
        if path in ("", "index.html"):
            return self._static("index.html")
        if path == "api/runs":
            return self._json({"runs": self.server.runs.listed(), "names": _names()})
        kind, _, rest = path.partition("/")
        if kind == "static":
            return self._static(rest)
        if kind == "grids":
            run, _, name = rest.partition("/")
            return self._bytes(training.grid(self.server.runs[run], name), TYPES[".png"])
        raise Refusal(404, "there is nothing at this address")

    def _post(self, path: str) -> None:
        given = self._body()
        panel = path.removeprefix("api/")
        if panel == path or not (panel in PANELS or panel == "training"):
            raise Refusal(404, "there is nothing at this address")
        values, runs = Values(given), self.server.runs
        if panel == "training":
            return self._json(training.since(values, runs))
        job = self.server.worker.submit(lambda report: _work(panel, values, runs, report))
        self._head(200, "application/x-ndjson")
        self._line({"waiting": self.server.worker.ahead_of(job)})
        events = job.events(self._is_open)
        with contextlib.closing(events):
            for event in events:
                self._line(event)

    def _body(self) -> Any:
        length = self.server.guard.length(self.headers)  # type: ignore[arg-type]
        try:
            return json.loads(self.rfile.read(length))
        except (ValueError, RecursionError):
            raise UserError("the request is no JSON: expected settings by name") from None

    def _is_open(self) -> bool:
        """Whether the page still listens: it sends nothing more, so what can be read is the end."""
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return True
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _static(self, name: str) -> None:
        folder = resources.files("diffjax.playground") / "static"
        known = {file.name: file for file in folder.iterdir() if file.is_file()}
        kind = TYPES.get(f".{name.rpartition('.')[2]}")
        if name not in known or kind is None:
            raise Refusal(404, "there is nothing at this address")
        self._bytes(known[name].read_bytes(), kind)

    def _json(self, value: Mapping[str, Any], *, status: int = 200) -> None:
        self._bytes(json.dumps(value).encode(), "application/json", status=status)

    def _bytes(self, content: bytes, kind: str, *, status: int = 200) -> None:
        self._head(status, kind, length=len(content))
        self.wfile.write(content)

    def _head(self, status: int, kind: str, *, length: int | None = None) -> None:
        self.close_connection = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()

    def _line(self, event: Mapping[str, Any]) -> None:
        self.wfile.write(json.dumps(event).encode() + b"\n")
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not logged: their addresses have the token."""


def _work(panel: str, values: Values, runs: Runs, report: Report) -> None:
    report({"begun": True})
    PANELS[panel](values, runs, report)


def _names() -> dict[str, list[str]]:
    return {
        key: [name for name in table if name not in REFUSED.get(key, ())]
        for key, table in names().items()
    }
