"""What is shown while trials run: rates, times left, hosts; as lines, JSON, failures alone."""

import io
import json
from contextlib import suppress

import pytest
from rich.console import Console

from fedsweep.records import LoadSample, RoundRecord
from fedsweep.sweeps.progress import TrialProgress
from fedsweep.sweeps.views import BarView, LineView, view_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def load(host: str, cpu: float, time_s: float) -> LoadSample:
    return LoadSample(time_s, host, "node", cpu, 300.0, 50.0, 20.0)


def a_sweep(progress: TrialProgress, clock: Clock) -> None:
    """Two trials of 4 rounds: one takes 2 s a round, one goes on after its third and then fails."""
    progress.begin("grid", to_run=2, rounds=8, cluster="2 hosts", store="sqlite:///x")
    progress.started("a", "seed=0", 4)
    progress.round("a", RoundRecord(0, {"1_global/acc": 0.1}, time_s=2e9))
    for number in range(1, 5):
        clock.now += 2
        samples = (
            load("cpu-0", 100.0, number),
            load("cpu-0", 20.0, number - 0.5),
            load("cpu-1", 80.0, number),
        )
        lost = ("host cpu-1 lost; 1 chunk run again",) if number == 2 else ()
        progress.round(
            "a", RoundRecord(number, {"1_global/acc": number / 10}, {}, {}, samples, lost, 2e9)
        )
    progress.ended("a", "FINISHED", summary={"acc": 0.4, "ari": float("nan")})
    progress.started("b", "seed=1", 4)
    progress.goes_on("b", 3)
    progress.ended("b", "FAILED", "on purpose")


def shown(mode: str, terminal: bool = False) -> str:
    text, clock = io.StringIO(), Clock()
    view = view_of(mode, Console(file=text, width=120, force_terminal=terminal))  # type: ignore[arg-type]
    with TrialProgress(view, clock) as progress:
        a_sweep(progress, clock)
    return text.getvalue()


def test_lines_tell_rates_times_left_and_how_busy_the_hosts_are() -> None:
    """Four rounds in 8 s: 2 s a round. After the first trial 4 rounds are left: 8 s."""
    assert shown("auto").splitlines() == [
        "2 trials, 8 rounds in all, on 2 hosts",
        "seed=0: round 1/4 acc 0.100 2.0 s/round eta 6 s",
        "seed=0: round 2: host cpu-1 lost; 1 chunk run again",
        "seed=0: round 2/4 acc 0.200 2.0 s/round eta 4 s",
        "seed=0: round 3/4 acc 0.300 2.0 s/round eta 2 s",
        "seed=0: round 4/4 acc 0.400 2.0 s/round eta 0 s",
        "[1/2] seed=0: FINISHED, hosts at 90% CPU, eta 8 s",
        "seed=1: goes on after round 3",
        "[2/2] seed=1: FAILED: on purpose",
    ]


def test_what_was_said_before_the_start_is_not_said_again_by_each_trial() -> None:
    """A remark may go on after what a trial says; what happens in a later round is news."""
    text = io.StringIO()
    with TrialProgress(view_of("auto", Console(file=text, width=120)), Clock()) as progress:
        progress.remark("sums are learnt (1 of 2 trials)")
        progress.started("a", "seed=0", 4)
        said = ("attackers: 3", "sums are learnt")
        progress.round("a", RoundRecord(0, {}, {}, {}, (), said, 2e9))
        progress.round("a", RoundRecord(1, {}, {}, {}, (), ("sums are learnt",), 2e9))
    lines = [line for line in text.getvalue().splitlines() if "attackers" in line or "sums" in line]
    assert lines == [
        "sums are learnt (1 of 2 trials)",
        "seed=0: round 0: attackers: 3",
        "seed=0: round 1: sums are learnt",
    ]


@pytest.mark.parametrize("has_begun", [False, True])
def test_who_interrupts_the_start_is_told_that_nothing_had_begun(has_begun: bool) -> None:
    text = io.StringIO()
    view = view_of("auto", Console(file=text, width=120))
    with suppress(KeyboardInterrupt), TrialProgress(view, Clock()) as progress:
        if has_begun:
            progress.begin("x", 1, 2, "2 hosts", "sqlite://")
        raise KeyboardInterrupt
    assert ("no trial had started" in text.getvalue()) is not has_begun


def test_json_is_an_object_a_line_without_nan() -> None:
    events = [json.loads(line) for line in shown("json").splitlines()]
    kinds = [
        "begin",
        "trial",
        "round",
        "round",
        "line",
        "round",
        "round",
        "round",
        "end",
        "trial",
        "line",
        "end",
    ]
    assert [event["event"] for event in events] == kinds
    assert all(
        event["time"] > 1e9 and not any(key.startswith("_") for key in event) for event in events
    )
    first = events[3]
    assert (
        first["key"],
        first["round"],
        first["rounds"],
        first["rounds_per_s"],
        first["eta_s"],
    ) == ("a", 1, 4, 0.5, 6)
    assert first["hosts_cpu"] == {"cpu-0": 100.0, "cpu-1": 80.0}
    assert events[8]["metrics"] == {"acc": 0.4, "ari": None}
    assert (events[-1]["status"], events[-1]["reason"], events[-1]["ended"]) == (
        "FAILED",
        "on purpose",
        2,
    )


def test_quiet_tells_failures_alone_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("quiet") == ""
    assert capsys.readouterr() == ("", "[2/2] seed=1: FAILED: on purpose\n")


def test_a_terminal_gets_bars_and_the_lines_that_stay() -> None:
    text = shown("auto", terminal=True)
    assert "seed=1: FAILED: on purpose" in text
    assert "hosts at 90% CPU" in text
    assert isinstance(view_of("auto", Console(file=io.StringIO(), force_terminal=True)), BarView)
    assert isinstance(view_of("auto", Console(file=io.StringIO())), LineView)
