"""Two sweeps, trial by trial."""

from types import SimpleNamespace

import pytest

from fedsweep.errors import RunnerError
from fedsweep.report.pairs import paired
from fedsweep.report.table import Marked


def sweep(name, values, axes=("strategy", "seed"), status="FINISHED"):
    """Values by place; the hash of a trial's weights is its accuracy."""
    places = [dict(zip(axes, place, strict=True)) for place in values]
    trials = [
        SimpleNamespace(
            status=status,
            final={"client_acc": value},
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
    found = paired(sweep("old", OLD), sweep("new", new))
    headings, fedavg, ifca = found.lines
    assert headings == ["strategy", "metric", "pairs", "first", "second", "difference", "p"]
    assert fedavg == ["fedavg", "client accuracy (%)", "4", "51.5", "51.5", "+0.00", "1"]
    assert ifca[:5] == ["ifca", "client accuracy (%)", "4", "71.5", "81.7"]
    assert ifca[5] == Marked("+10.15")
    assert found.told[0] == (
        "8 pairs of trials; 4 with the same final weights, to the bit; 1 trials have no partner"
    )


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
