"""A credential in the store's address leaves the process by no door, whoever prints it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedsweep.cli import main
from fedsweep.errors import RunnerError
from fedsweep.output import guarded_output
from fedsweep.redaction import redact_files
from fedsweep.tracking import ops
from tests.patience import PATIENCE_S
from tests.trials import SMALL

ROOT = Path(__file__).resolve().parents[2]
SECRET = "pl4nt3d@s3cr3t"


def leaked(*places: Path) -> list[str]:
    """Return the files that hold the password, or the part of it that a URI parser leaves."""
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert files
    return [
        str(p) for p in files if any(part.encode() in p.read_bytes() for part in SECRET.split("@"))
    ]


def run(tmp_path: Path, name: str, *words: str, interrupt: str = "") -> tuple[int, str]:
    """Run a command in a process of its own; return its status and all that it printed."""
    log = tmp_path / f"{name}.log"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "fedsweep", *words],
            cwd=tmp_path,
            env=env,
            stdout=file,
            stderr=file,
        )
    while interrupt and interrupt not in log.read_text() and process.poll() is None:
        time.sleep(0.05)
    if interrupt:
        process.send_signal(signal.SIGINT)
    return process.wait(PATIENCE_S), log.read_text()


def test_a_planted_password_is_nowhere_in_what_a_run_leaves(server, tmp_path, tmp_path_factory):
    address = server.replace("//", f"//user:{SECRET.replace('@', '%40')}@")
    store = [f"tracking.uri='{address}'", "tracking.output=out"]
    grid = [
        *SMALL,
        "strategy=fedavg",
        "partition=iid",
        "shift=none",
        "resources=inline",
        "seed=0,1",
    ]
    words = ["sweep", "default", *grid, "tracking.experiment=secrets", *store]
    status, text = run(tmp_path, "cut", *words, "rounds=2000", interrupt="round 2/")
    assert status == 130, text
    assert "run the same command again" in text
    status, text = run(tmp_path, "whole", *words, "rounds=2", "model=mlp")
    assert status == 0, text
    assert "stored in http://***@127.0.0.1" in text
    status, text = run(tmp_path, "flush", "flush", *store)
    assert (status, "sent 0 events" in text) == (0, True), text
    refused = f"http://user:{SECRET}@127.0.0.1:1/?token=pl4nt3d"
    status, text = run(tmp_path, "refused", "sweep", "default", f"tracking.uri='{refused}'")
    assert status == 2, text
    (server_folder,) = Path(tmp_path_factory.getbasetemp()).glob("server0")
    assert leaked(tmp_path, server_folder) == []


def test_other_peoples_prints_are_read_too(capsys):
    with guarded_output():
        print("View run at: http://user:pl4nt3d@host/#/1", flush=True)
        sys.stderr.write("postgresql://user:p@l4nt3d@host refused\n")
        sys.stdout.writelines(["https://host/?api_key=pl4nt3d&x=1\n"])
        assert sys.stdout.isatty() is False
    out, err = capsys.readouterr()
    assert out == "View run at: http://***@host/#/1\nhttps://host/?api_key=***&x=1\n"
    assert err == "postgresql://***@host refused\n"


def test_a_command_prints_no_credential(capsys):
    assert main(["run", "tracking.uri='ftp://user:pl4nt3d@host'", "resources=inline"]) == 2
    out, err = capsys.readouterr()
    assert "pl4nt3d" not in out + err
    assert "ftp://***@host" in err


@pytest.mark.parametrize("make", [
    lambda text: ops.create("run", text, 0, {"tag": text}, None),
    lambda text: ops.params("run", {"key": text}),
    lambda text: ops.tags("run", {"key": text}),
    lambda text: ops.files("run", {"a/notes.txt": text.encode(), "MLmodel": text.encode()}),
])  # fmt: skip
def test_an_operation_holds_no_credential(make):
    assert "pl4nt3d" not in repr(make("see http://user:pl4nt3d@host"))


def test_an_error_holds_no_credential_and_other_files_are_left_alone():
    assert str(RunnerError("http://a:pl4nt3d@host fails")) == "http://***@host fails"
    files = {"x.parquet": b"http://a:b@host", "y.txt": b"\xff http://a:b@host", "z.md": b"plain"}
    assert redact_files(files) == files
