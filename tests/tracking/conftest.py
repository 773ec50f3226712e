"""A real MLflow server, and a proxy before it that fails as networks and servers do."""

import http.client
import http.server
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S


def free_port() -> int:
    """Return a port that nobody listens at, and that nobody gets who asks for any.

    Those that the system gives are others' before the server is up: Ray takes dozens of them.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port
    raise AssertionError("a hundred ports are taken")


@contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[str]:
    """Run ``mlflow server`` on a free port; yield its address."""
    port = free_port()
    words = [
        "-m",
        "mlflow",
        "server",
        "--backend-store-uri",
        backend,
        "--workers",
        "1",
        "--port",
        str(port),
    ]
    words += ["--host", "127.0.0.1", "--artifacts-destination", str(folder / "artifacts")]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, *words],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, "the server did not come up"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server with SQLite behind it."""
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, f"sqlite:///{folder}/mlflow.db") as address:
        yield address


class Proxy:
    """Passes requests on to a server, as long as ``mode`` is ``up``.

    ``down`` closes each connection without an answer, ``busy`` answers 503, ``lost`` passes the
    request on and loses the answer; a function decides for each request (method and path) which of
    them it is.
    """

    def __init__(self, target: str) -> None:
        self.mode: str | Callable[[str], str] = "up"
        self.seen: list[str] = []
        host = target.removeprefix("http://")
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                super().handle_one_request()

            def log_message(self, *args: object) -> None:
                pass

            def _pass(self) -> None:
                name = f"{self.command} {self.path}"
                mode = proxy.mode if isinstance(proxy.mode, str) else proxy.mode(name)
                proxy.seen.append(f"{mode} {name}")
                self.close_connection = True
                if mode == "down":
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if mode == "busy":
                    self.send_error(503)
                    return
                there = http.client.HTTPConnection(host, timeout=30)
                there.request(self.command, self.path, body, dict(self.headers))
                answer = there.getresponse()
                content = answer.read()
                there.close()
                if mode == "lost":
                    return
                self.send_response(answer.status)
                for key, value in answer.getheaders():
                    if key.lower() not in ("transfer-encoding", "content-length", "connection"):
                        self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy(server: str) -> Iterator[Proxy]:
    made = Proxy(server)
    yield made
    made.close()
