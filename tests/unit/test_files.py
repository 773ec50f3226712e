"""Files are written whole or not at all, and locks end with those who hold them."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsweep.files import lock, write_whole


def test_a_file_is_written_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    for content in (b"", b"first", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("what", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_was_there_stays_where_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, what: BaseException
) -> None:
    path = tmp_path / "name"
    write_whole(path, b"before")

    def fail(*_: object) -> None:
        raise what

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(what)):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "missing" / "name", b"")


@contextmanager
def opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    path.mkdir() if kind == "folder" else path.touch()
    code = (
        "import os, subprocess, sys; from fedsweep.files import lock\n"
        "assert lock(os.open(sys.argv[1], os.O_RDONLY))\n"
        "child = subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL)\n"
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with opened(path) as handle:
            assert not lock(handle)
            assert not lock(handle, shared=True)
            holder.kill()
            assert lock(handle, wait=True)
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, 9)
        holder.kill()
        holder.wait()


def test_who_looks_is_in_nobodys_way_but_a_holders(tmp_path: Path) -> None:
    with opened(tmp_path) as first, opened(tmp_path) as second, opened(tmp_path) as third:
        assert lock(first, shared=True)
        assert lock(second, shared=True)
        assert not lock(third)
    with opened(tmp_path) as fourth:
        assert lock(fourth)
