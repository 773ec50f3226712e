"""Who may come in: all that is started here listens on loopback, and Ray wants its token."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path

import grpc
import psutil
import pytest
import ray

from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.pool import HostPool
from tests.patience import PATIENCE_S
from tests.tracking.conftest import free_port

ROOT = Path(__file__).resolve().parents[2]
LOOPBACK = {"127.0.0.1", "::1"}
CALLS = {  # of each of Ray's services one that reads, runs or frees something
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "JobInfoGcsService/GetAllJobInfo",
    "NodeManagerService/RequestWorkerLease",
    "CoreWorkerService/PushTask",
    "ObjectManagerService/FreeObjects",
}


def answer(port: int, call: str, *headers: tuple[str, str]) -> str:
    """Return the status of a call with an empty request."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        try:
            channel.unary_unary(f"/ray.rpc.{call}")(b"", timeout=20, metadata=headers)
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"


@pytest.fixture(scope="module")
def doors(ray_runtime: None):
    """Return the sockets that the session's processes listen on."""
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=1, num_cpus=0.1)}))
    pool.wait()
    yield listening(psutil.Process())
    pool.close()


def listening(parent: psutil.Process) -> list[tuple[str, str, int]]:
    """Return (process, address, port) of each socket that a process and its children listen on."""
    found = []
    for process in [parent, *parent.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            found += [
                (process.name(), socket.laddr.ip.removeprefix("::ffff:"), socket.laddr.port)
                for socket in process.net_connections("inet")
                if socket.status == psutil.CONN_LISTEN
            ]
    return found


def test_every_socket_of_a_session_is_on_loopback(doors) -> None:
    assert {"gcs_server", "raylet"} <= {name for name, _, _ in doors}
    assert any(name.startswith("ray::") for name, _, _ in doors), doors
    assert {address for _, address, _ in doors} <= LOOPBACK, doors


def test_every_socket_of_the_ui_is_on_loopback(template: Path, tmp_path: Path) -> None:
    shutil.copy(template, tmp_path / "mlflow.db")
    port = free_port()
    words = ["ui", "--port", str(port), f"tracking.output={tmp_path}"]
    with (tmp_path / "log").open("w") as log:
        ui = subprocess.Popen(
            [sys.executable, "-m", "fedsweep", *words],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not any(number == port for _, _, number in listening(psutil.Process(ui.pid))):
            assert ui.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60).close()
        sockets = listening(psutil.Process(ui.pid))
        assert {address for _, address, _ in sockets} <= LOOPBACK, sockets
    finally:
        os.killpg(ui.pid, signal.SIGTERM)
        ui.wait(PATIENCE_S)


def test_nobody_comes_in_without_the_token(doors) -> None:
    for name, _, port in doors:
        if "Agent" in name:  # HTTP
            url = f"http://127.0.0.1:{port}/get_or_create_runtime_env"
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(url, b"", timeout=20)
            assert caught.value.code == 401
            continue
        for headers in ([], [("authorization", "Bearer 0123456789abcdef")]):
            found = {answer(port, call, *headers) for call in CALLS}
            if name not in ("gcs_server", "raylet"):  # an idle worker may have ended meanwhile
                found -= {"UNAVAILABLE"}
            assert found <= {"UNAUTHENTICATED", "UNIMPLEMENTED"}, (name, headers, found)
            if name in ("gcs_server", "raylet"):
                assert "UNAUTHENTICATED" in found, (name, headers, found)


def test_with_the_token_they_answer(doors) -> None:
    """The refusals above are the token's doing."""
    token = ray._raylet.AuthenticationTokenLoader.instance().get_raw_token()
    [port] = [port for name, _, port in doors if name == "gcs_server"]
    header = "authorization", f"Bearer {token}"
    assert answer(port, "JobInfoGcsService/GetAllJobInfo", header) == "OK"


def test_the_token_is_in_no_file_command_line_or_environment_of_the_driver(doors) -> None:
    token = ray._raylet.AuthenticationTokenLoader.instance().get_raw_token()
    children = psutil.Process().children(recursive=True)
    words = []
    for process in children:
        with suppress(psutil.NoSuchProcess):  # it ended meanwhile
            words += process.cmdline()
    assert words
    assert len(token) == 64
    assert not [word for word in [*words, *os.environ.values()] if token in word]
    folder = ray._private.worker._global_node.get_session_dir_path()
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    mode = Path(folder).parents[1].stat().st_mode
    assert mode & 0o077 == 0, "Ray's sockets in it ask for no token"
