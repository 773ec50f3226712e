"""Files are written whole or not at all."""

import os
from pathlib import Path

import pytest

from fedsweep.files import write_whole


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
