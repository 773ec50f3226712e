"""Output that can't be written costs output, not work."""

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsweep.cli import main
from fedsweep.output import Output
from fedsweep.sweeps.interrupts import SIGNALS, Interrupts

ROOT = Path(__file__).resolve().parents[2]


class Broken(io.StringIO):
    """A stream that can't be written."""

    def __init__(self, error: Exception, terminal: bool = False) -> None:
        super().__init__()
        self.error, self.terminal = error, terminal

    def isatty(self) -> bool:
        return self.terminal

    def write(self, text: str) -> int:
        raise self.error


def closed() -> io.TextIOBase:
    stream = io.StringIO()
    stream.close()
    return stream


def without_reader() -> io.TextIOBase:
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


STREAMS: dict[str, tuple[Callable[[], object], bool]] = {
    "a reader that has enough": (without_reader, False),
    "a terminal that is gone": (lambda: Broken(OSError(errno.EIO, "gone"), terminal=True), False),
    "a broken disk": (lambda: Broken(OSError(errno.EIO, "Input/output error")), True),
    "a closed stream": (closed, False),
    "no stream": (lambda: None, False),
    "a full disk": (lambda: Broken(OSError(errno.ENOSPC, "No space left")), True),
    "a quota": (lambda: Broken(OSError(errno.EDQUOT, "Quota exceeded")), True),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_output_that_cannot_be_written_is_no_exception(
    stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, missed = STREAMS[stream]
    monkeypatch.setattr(sys, "stdout", make())
    assert main(["config"]) == int(missed)
    assert ("standard output is not complete" in capsys.readouterr().err) == missed
    monkeypatch.setattr(sys, "stderr", make())
    assert main(["config", "dataset=mnst"]) == 2


@pytest.mark.parametrize(
    ("encoding", "text", "told"),
    [
        ("utf-8", "91 ± 2 → …", "91 ± 2 → …"),
        ("utf-8", "a file \udcff", "a file \\udcff"),
        ("ascii", "91 ± 2 → …", "91 +- 2 -> ..."),
        ("ascii", "数 é", "\\u6570 \\xe9"),
        ("latin-1", "91 ± 2 → 数", "91 ± 2 -> \\u6570"),
    ],
)
def test_what_an_encoding_lacks_is_said_in_other_characters(
    encoding: str,
    text: str,
    told: str,
) -> None:
    behind = io.BytesIO()
    stream = Output(io.TextIOWrapper(behind, encoding=encoding))
    assert stream.write(text) == len(text)
    stream.flush()
    assert behind.getvalue().decode(encoding) == told


def test_what_a_signal_says_in_the_middle_of_a_write_comes_next() -> None:
    class Busy(io.StringIO):
        busy = True

        def write(self, text: str) -> int:
            if self.busy:
                raise RuntimeError("reentrant call")
            return super().write(text)

    behind = Busy()
    stream = Output(behind)
    stream.write("interrupted\n")
    behind.busy = False
    stream.write("round 2\n")
    assert behind.getvalue() == "interrupted\nround 2\n"


def test_no_file_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """Else what a library writes to standard output goes into the database."""
    code = (
        "import os, sys\nfrom fedsweep.output import guarded_output\nwith guarded_output():\n"
        "    file = open(sys.argv[1], 'w')\n    os.write(1, b'noise')\n    os.write(2, b'noise')\n"
        "    print('text')\n    print('text', file=sys.stderr)"
    )
    command = f'exec {sys.executable} -c "$0" {tmp_path}/database <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", command, code], cwd=ROOT).returncode == 0
    assert (tmp_path / "database").read_text() == ""


@pytest.fixture
def _hangs_up() -> Iterator[None]:
    """As in a terminal: whoever runs the suite under nohup hands on that SIGHUP is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hangs_up")
@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_asks_for_an_end_after_the_round(number: signal.Signals) -> None:
    said: list[str] = []
    with Interrupts(lambda: said.append("ends")) as interrupts:
        signal.raise_signal(number)
        assert interrupts.asked
        assert said == ["ends"]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)


@pytest.mark.usefixtures("_hangs_up")
def test_a_terminal_that_disappears_before_the_first_round_ends_the_command_as_ctrl_c_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def hangs_up(config: object) -> None:
        signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr("fedsweep.sweeps.compose.to_yaml", hangs_up)
    assert main(["config"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_under_nohup_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:

        def hangs_up(config: object) -> str:
            signal.raise_signal(signal.SIGHUP)
            return ""

        monkeypatch.setattr("fedsweep.sweeps.compose.to_yaml", hangs_up)
        assert main(["config"]) == 0
        with Interrupts(lambda: None) as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert not interrupts.asked
    finally:
        signal.signal(signal.SIGHUP, before)
