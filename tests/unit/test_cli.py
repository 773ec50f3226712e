"""The command line: exit statuses, one line of error, and a pipe whose reader leaves."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedsweep.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_bad_input_is_one_line_on_stderr_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "dataset=mnst"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown dataset 'mnst'. Did you mean 'mnist'?")
    assert err.count("\n") == 1


def test_an_unknown_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--adress", "auto"]) == 2
    assert "unknown option '--adress'" in capsys.readouterr().err


def test_dry_run_lists_the_trials_and_what_there_is_to_do(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["strategy.fraction_train=0.5", f"tracking.output={tmp_path}"]
    assert main(["sweep", "default", "seed=0", *words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == (
        "12 trials of sweep 'default': 120 rounds, in which clients train 1,200 times"
    )
    assert len(lines) == 13
    assert not list(tmp_path.iterdir())


def test_help_shows_commands_groups_options_and_examples(capsys) -> None:
    for words, parts in (
        (["--help"], ("examples:", "run one trial", "`fedsweep run --help` lists the groups")),
        (["run", "--help"], ("examples:", "groups and their options:", "dirichlet", "kmeans",
                             "sweeps:", "3_clients/acc")),
        (["best", "--help"], ("metrics of a trial's end:", "client_acc")),
    ):  # fmt: skip
        assert main(words) == 0
        shown = capsys.readouterr().out
        assert [part for part in parts if part not in shown] == []


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m fedsweep config | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("dataset:\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--where", "dataset=a", "--where", "dataset=b"],
         "--where is given twice for dataset; give dataset=a,b"),
        (["--label", "a=A", "--label", "a=B"], "--label is given twice for a; give it once"),
        (["--decimals", "2", "--decimals", "3"],
         "--decimals is given twice for all; give it once"),
    ],
)  # fmt: skip
def test_an_option_given_twice_for_one_name_is_refused(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last one won, without a word."""
    assert main(["report", "any", *words]) == 2
    assert said in capsys.readouterr().err
