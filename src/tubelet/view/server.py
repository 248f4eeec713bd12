"""A server on this machine for one page, its features and its videos.

Other sites in the same browser cannot read it: addresses begin with a random token, and a request must name this server
as its host, which DNS rebinding cannot forge. No address is a path: each is looked up in a table of resources.
"""

import errno
import logging
import re
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import ConfigError

HOST = "127.0.0.1"
_PIECE = 2**20
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_HEADERS = {
    "Accept-Ranges": "bytes",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Resource:
    """What an address has.

    Attributes:
        content_type: as in HTTP.
        content: bytes, an array whose rows are sent one after the other, or a file.
    """

    content_type: str
    content: bytes | NDArray[np.int8] | Path

    def size(self) -> int:
        """Size in bytes.

        Raises:
            OSError: if a file cannot be read.
        """
        if isinstance(self.content, Path):
            return self.content.stat().st_size
        return self.content.nbytes if isinstance(self.content, np.ndarray) else len(self.content)


class PageServer(ThreadingHTTPServer):
    """Serves resources on the loopback interface until it is closed.

    Attributes:
        resources: address after the token, such as "media/0" -> resource; "" is the page.
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        """Listen on a port, 0 for any that is free; requests wait until `serve_forever` is called.

        Raises:
            ConfigError: if the port cannot be used.
        """
        self.resources: Mapping[str, Resource] = {}
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            reason = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
            raise ConfigError(f"--port is {port}, which {reason}; choose another one, or leave it out") from error

    @property
    def url(self) -> str:
        """Address of the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Browsers close connections whenever they have enough of a video; anything else is logged."""
        _LOG.debug("request from %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "tubelet", ""
    timeout = 60

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hosts = [f"{name}:{self.server.server_port}" for name in (HOST, "localhost")]
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in hosts or origin not in (None, *(f"http://{each}" for each in hosts)):
            return self._refuse(HTTPStatus.FORBIDDEN)
        if self.path == "/favicon.ico":  # browsers ask for it; pages have none
            return self._refuse(HTTPStatus.NO_CONTENT)
        _, token, *address = self.path.split("?")[0].split("/", 2) if self.path.count("/") > 1 else ("", "")
        if not secrets.compare_digest(token.encode(), self.server.token.encode()):
            return self._refuse(HTTPStatus.NOT_FOUND)
        resource = self.server.resources.get("".join(address))
        if resource is None:
            return self._refuse(HTTPStatus.NOT_FOUND)
        try:
            size = resource.size()
        except OSError as error:
            _LOG.warning("%s", error)
            return self._refuse(HTTPStatus.GONE)
        self._send(resource, size)

    def _refuse(self, status: HTTPStatus, **headers: str) -> None:
        self._begin(status, {"Content-Length": "0"} | headers)

    def _begin(self, status: HTTPStatus, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, resource: Resource, size: int) -> None:
        headers = {"Content-Type": resource.content_type}
        begin, end, status = 0, size, HTTPStatus.OK
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match and any(match.groups()):
            first, last = match.groups()
            begin = int(first) if first else max(0, size - int(last))
            end = min(size, int(last) + 1) if first and last else size
            if begin >= end:
                return self._refuse(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, **{"Content-Range": f"bytes */{size}"})
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
        self._begin(status, headers | {"Content-Length": str(end - begin)})
        if self.command == "GET":
            self._send_bytes(resource.content, begin, end)

    def _send_bytes(self, content: bytes | NDArray[np.int8] | Path, begin: int, end: int) -> None:
        if isinstance(content, Path):
            with content.open("rb") as file:
                self.connection.sendfile(file, begin, end - begin)
            return
        view = content.reshape(-1).data.cast("B") if isinstance(content, np.ndarray) else memoryview(content)
        for start in range(begin, end, _PIECE):
            self.wfile.write(view[start : min(end, start + _PIECE)])

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def log_message(self, format: str, *args: Any) -> None:
        _LOG.debug("%s", (format % args).replace(self.server.token, "..."))
