"""Two sweeps, trial by trial."""

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from fedsweep.errors import RunnerError
from fedsweep.report import stats
from fedsweep.report.pairs import paired
from fedsweep.report.table import Marked
from fedsweep.report.terminal import fitted_lines


def sweep(name, values, axes=("strategy", "seed"), status="FINISHED", **params):
    """Values by place; the hash of a trial's weights is its accuracy."""
    places = [dict(zip(axes, place, strict=True)) for place in values]
    trials = [
        SimpleNamespace(
            status=status,
            final={"client_acc": value},
            params=params,
            run=SimpleNamespace(data=SimpleNamespace(tags={"weights_sha256": str(value)})),
        )
        for value in values.values()
    ]
    return SimpleNamespace(name=name, axes=axes, places=places, trials=trials)


OLD = {("fedavg", str(i)): 0.5 + i / 100 for i in range(4)}
OLD |= {("ifca", str(i)): 0.7 + i / 100 for i in range(4)}


def test_pairs_are_tested_over_their_seeds_and_equal_bits_are_counted():
    new = {place: value + (0.1 + int(place[1]) / 1000 if place[0] == "ifca" else 0)
           for place, value in OLD.items()}  # fmt: skip
    new["ditto", "0"] = 0.9
    found = paired(sweep("old", OLD, rounds="5"), sweep("new", new, rounds="12"))
    headings, fedavg, ifca = found.lines
    assert headings == ["strategy", "metric", "pairs", "first", "second", "difference", "p"]
    assert fedavg == ["fedavg", "client accuracy (%)", "4", "51.5", "51.5", "+0.00", "1"]
    assert ifca[:5] == ["ifca", "client accuracy (%)", "4", "71.5", "81.7"]
    assert ifca[5] == Marked("+10.15", " *")
    # Of 4 pairs t = 0.1015 / sqrt(1.667e-6 / 4) = 157.2, p = 5.7e-7, of two rows the smaller one.
    assert float(ifca[6]) == pytest.approx(2 * 5.7e-7, rel=0.05)
    assert found.told[:3] == (
        "8 pairs of trials; 4 with the same final weights, to the bit",
        "they differ in rounds (5, 12)",
        "1 trial of 'new' without a partner: strategy=ditto",
    )
    assert found.told[3].startswith("*: ")


def test_what_diverged_is_the_worst_where_less_is_better():
    """Better in six pairs and diverged in one: the sign test's p is 2 (1 + 7) / 2^7."""

    def errors(*values):
        made = sweep("s", {("fedavg", str(i)): value for i, value in enumerate(values)})
        for trial in made.trials:
            trial.final = {"client_mae": trial.final["client_acc"]}
        return made

    found = paired(errors(float("nan"), *[0.3] * 6), errors(*[0.5] * 7))
    assert found.lines[1][-2:] == ["nan", "0.12"]


def test_trials_that_failed_in_both_are_counted():
    old, new = sweep("old", OLD), sweep("new", OLD)
    for trial in (old.trials[0], new.trials[0]):
        trial.status = "FAILED"
    told = paired(old, new).told
    assert told[0].startswith("7 pairs")
    assert told[-3:-1] == (
        "1 trial of 'old' did not finish", "1 trial of 'new' did not finish"
    )  # fmt: skip


def test_where_it_is_too_wide_no_word_is_cut():
    """Each row is a block of lines, and what is clear can be seen without colours."""
    new = {place: value + 0.1 + int(place[1]) / 1000 for place, value in OLD.items()}
    found = paired(sweep("old", OLD), sweep("new", new))
    for width, first in ((100, "old and new"), (40, "old and new")):
        console = Console(width=width, file=StringIO())
        console.print(fitted_lines(found.lines, found.place, "old and new", width))
        lines = console.file.getvalue().splitlines()
        assert lines[0].strip() == first
        assert ("  difference: +10.15 *" in lines) == (width == 40)
        assert any("+10.15 *" in line for line in lines)
        assert max(map(len, lines)) <= width


def test_some_pairs_may_differ_in_more_than_others():
    one, two = sweep("old", OLD, lr="1"), sweep("new", OLD, lr="1")
    two.trials[0].params = {"lr": "2"}
    assert paired(one, two).told[1] == "they differ in lr (1, 2) in 1 pair"
    assert len(paired(one, one).told) == 2


def test_p_values_are_corrected_as_holm_says():
    """The smallest times their number, the next one times one less, and never less than before."""
    assert stats.corrected([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.corrected([0.9, 0.8]) == [1.0, 1.0]
    assert stats.corrected([]) == []


def test_an_axis_that_one_of_them_lacks_is_left_out_where_it_has_one_value():
    of_lr = {(s, "0.1", seed): v for (s, seed), v in OLD.items()}
    axes = ("strategy", "training.lr", "seed")
    assert "8 pairs" in paired(sweep("old", OLD), sweep("new", of_lr, axes)).told[0]
    several = of_lr | {(s, "1", seed): v for (s, seed), v in OLD.items()}
    with pytest.raises(RunnerError, match="'new' has several trials .* axes training.lr"):
        paired(sweep("old", OLD), sweep("new", several, axes))


def test_sweeps_without_a_pair_are_refused():
    with pytest.raises(RunnerError, match="have no trial at the same place of strategy, seed"):
        paired(sweep("old", OLD), sweep("new", {("apfl", "0"): 0.5}))
    with pytest.raises(RunnerError, match="have no trial"):
        paired(sweep("old", OLD), sweep("new", OLD, status="FAILED"))
