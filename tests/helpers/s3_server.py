"""An S3-compatible server on this machine, and a network to it that fails as networks do."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class Network:
    """What happens to requests between a client and the server.

    Attributes:
        fault: given the number of a request, counted from 0 since `disturb`, "error" (a 500), "slow" (a body that drips
            for seconds), "cut" (a body that ends in its middle), or None.
        faults: how often something was done.
        sent: bytes of all bodies since `disturb`.
        url: of the server.
    """

    def __init__(self) -> None:
        self.app = DomainDispatcherApplication(create_backend_app)
        self.url = ""
        self.lock = threading.Lock()
        self.disturb(lambda number: None)

    def disturb(self, fault: Callable[[int], str | None]) -> None:
        """Start with other faults, for objects that are read; listings and heads get errors only."""
        self.fault, self.requests, self.faults, self.sent = fault, 0, 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        with self.lock:
            fault = self.fault(self.requests)
            self.requests += 1
        reads = environ["REQUEST_METHOD"] == "GET" and "list-type" not in environ["QUERY_STRING"]
        if fault == "error":
            self.faults += 1
            start_response("500 Internal Server Error", [("Content-Length", "0")])
            return [b""]
        body = b"".join(self.app(environ, start_response))
        self.sent += len(body)
        if fault is None or not reads:
            return [body]
        self.faults += 1
        return self._drip(body) if fault == "slow" else self._cut(body)

    def _drip(self, body: bytes) -> Iterator[bytes]:
        for i in range(0, len(body), max(1, len(body) // 20)):
            yield body[i : i + max(1, len(body) // 20)]
            time.sleep(0.2)

    def _cut(self, body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        raise ConnectionAbortedError("cut on purpose")


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


@contextmanager
def serve() -> Iterator[Network]:
    """A server with no buckets yet, on a free port of the loopback device."""
    network = Network()
    server = make_server("127.0.0.1", 0, network, threaded=True, request_handler=_Quiet)
    network.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield network
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
