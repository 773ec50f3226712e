"""The catalog of metrics: what a declaration says, what is refused, that declaring is enough."""

import csv
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from fedsweep.catalog import (
    CATALOG,
    EPSILON,
    EPSILON_AHEAD,
    Catalog,
    Metric,
    Need,
    Observed,
    client_values,
)
from fedsweep.cli import main
from fedsweep.config import HalvingConfig, StopConfig
from fedsweep.errors import ConfigError
from fedsweep.report.choice import Choice
from fedsweep.report.curves import Target
from fedsweep.report.report import report
from fedsweep.reproduce.expectations import Row
from fedsweep.sweeps.compose import compose, expand
from fedsweep.sweeps.resume import Restart
from fedsweep.sweeps.sweep import SweepPlan, run_sweep
from fedsweep.sweeps.views import LineView, new_console
from fedsweep.tracking.read import read_sweep
from tests.trials import events_of, small

ROOT = Path(__file__).resolve().parents[2]

# What a declaration says


def test_statistics_over_clients_by_hand() -> None:
    """Of .2, .4, .9: mean .5; deviation sqrt(.26/3); 10th percentile .24;
    Jain 2.25 / (3 x 1.01).
    """
    observed = Observed({"eval_acc": np.array([0.9, 0.2, 0.4])})
    values = client_values("eval_acc")
    assert values.mean()(observed) == pytest.approx(0.5)
    assert values.std()(observed) == pytest.approx((0.26 / 3) ** 0.5)
    assert values.quantile(0.1)(observed) == pytest.approx(0.24)
    assert values.min()(observed) == 0.2
    assert values.jain()(observed) == pytest.approx(2.25 / 3.03)
    assert client_values("test_acc").mean()(observed) is None  # nobody has one


def test_how_a_value_is_read() -> None:
    share = Metric("3_clients/mine", "mine", "%", decimals=1, label="all of mine")
    assert (share.heading, share.axis_label, share.told(0.5)) == (
        "mine (%)",
        "all of mine (%)",
        "50.0",
    )
    plain = Metric("3_clients/mine", "mine", decimals=3)
    assert (plain.heading, plain.axis_label, plain.told(0.5)) == ("mine", "mine", "0.500")


def test_what_counts_clients_has_no_decimals() -> None:
    counts = [metric for metric in CATALOG if metric.heading.startswith("clients ")]
    assert len(counts) > 10
    assert {metric.decimals for metric in counts} == {0}
    assert CATALOG[EPSILON].decimals == CATALOG[EPSILON_AHEAD].decimals


def test_a_star_is_a_number() -> None:
    found = CATALOG["2_clusters/c12_acc"]
    assert found.key == "2_clusters/c*_acc"
    assert "2_clusters/c*_acc" not in CATALOG  # it is no key that anything is logged under
    assert "2_clusters/cx_acc" not in CATALOG
    assert StopConfig(metric="2_clusters/c0_acc", target=0.9).sign == 1


def test_what_is_needed_is_that_of_the_section_too() -> None:
    assert CATALOG["2_clusters/ari"].all_needs == (Need.CLUSTERS, Need.GROUPS)
    assert CATALOG["1_global/acc"].all_needs == (Need.GLOBAL_MODEL, Need.CLASSES)


@pytest.mark.parametrize("metric", list(CATALOG), ids=lambda metric: metric.key)
def test_every_metric_is_in_the_docs(metric: Metric) -> None:
    """By its name alone too: a table's row names several of a section."""
    told = "".join(
        path.read_text()
        for path in (
            ROOT / "docs/results-and-tracking.md",
            ROOT / "docs/strategies/servers.md",
            ROOT / "docs/virtual-time.md",
            ROOT / "docs/adversaries.md",
            ROOT / "docs/secure-aggregation.md",
        )
    )
    section, _, name = metric.key.partition("/")
    assert f"`{section}" in told
    assert re.search(rf"[`/]{re.escape(name)}`", told), f"{metric.key} is in no table of the docs"


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (Metric("acc", "x"), "needs a key of a section and a name, such as 3_clients/"),
        (Metric("8_mine/acc", "x"), "sections: 0_final, 1_global"),
        (Metric("3_clients/my acc", "x"), "needs a key"),
        (Metric("3_clients/acc", "x"), "is declared already"),
        (Metric("3_clients/mine", "x", final="client_acc"), "'client_acc' of 3_clients/acc"),
    ],
)
def test_what_can_not_be_declared(metric: Metric, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        CATALOG.add(metric)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("3_clients/ac", r"Did you mean '3_clients/acc'\? Valid: (3_clients/\w+(, |.$))+$"),
        ("2_clusters/arri", "Did you mean '2_clusters/ari'"),
        ("5_time/round_s", "measured on the machine, and differs from run to run"),
        ("7_data/js_max", "unknown metric"),  # no round but the first has it
        ("0_final/client_acc", "unknown metric"),
        ("2_clusters/c*_acc", r"unknown metric '2_clusters/c\*_acc'"),
    ],
)
@pytest.mark.parametrize("section", [StopConfig, HalvingConfig])
def test_what_no_rule_can_watch(section: type, key: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        section(metric=key)
    assert "\n" not in str(refused.value)


def test_targets_and_expectations_know_the_metrics() -> None:
    with pytest.raises(ConfigError, match="Did you mean '1_global/acc'"):
        Target.parse("1_global/ac=0.9")
    with pytest.raises(ConfigError, match="Did you mean '1_global/acc'"):
        Row(what="a row", metric="1_global/ac", at_least=1)
    assert str(Target.parse("1_global/loss=0.5")) == "1_global/loss <= 0.5"
    assert str(Target.parse("0.9")) == "3_clients/acc >= 0.9"


def test_rules_know_which_is_better() -> None:
    """What is given wins; what has no better and worse has to be given."""
    assert compose(["stop.target=.1", "stop.metric=1_global/loss"]).stop.sign == -1
    assert compose(["stop.target=.1", "stop.metric=1_global/loss", "stop.mode=max"]).stop.sign == 1
    assert HalvingConfig(axis="training.lr", metric="3_clients/loss").sign == -1
    words = ["strategy=kmeans", "stop.target=3", "stop.metric=2_clusters/count"]
    with pytest.raises(ConfigError, match=r"set stop.mode=max or stop.mode=min"):
        compose(words)
    assert compose([*words, "stop.mode=max"]).stop.sign == 1
    given = compose(["stop.target=.9", "stop.mode=max"]).key
    assert compose(["stop.target=.9"]).key == given


# Enough to declare it


def spread(observed: Observed) -> float | None:
    acc = observed.clients.get("eval_acc")
    return None if acc is None else float(acc.max() - acc.min())


SPREAD = Metric(
    "3_clients/spread", "spread of clients", "%", "lower", final="spread", of=spread,
    needs=(Need.HELD_OUT,), shown="table", ranked=True, curve="spread",
    label="best to worst client", live="spread",
)  # fmt: skip


@pytest.fixture
def declared() -> Iterator[Metric]:
    """A metric that nothing but this file knows."""
    yield CATALOG.add(SPREAD)
    CATALOG.remove(SPREAD.key)


def test_a_metric_declared_here_is_everywhere(
    declared: Metric, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Logs, live line, summary, halving, tables, figures, target, best, help: lower is better."""
    shutil.copy(template, tmp_path / "mlflow.db")
    here = f"tracking.output={tmp_path}"
    words = [
        "shift=none", "partition=dirichlet", "partition.alpha=0.3", "strategy=kmeans",
        "num_clients=4", "strategy.num_clusters=1,2", "strategy.warmup_rounds=1", "seed=0",
        "rounds=2", "model=logreg", "resources.engine=inline", "resources.trials=1",
        "tracking.log_models=false", "tracking.figures=none", "training.lr=0.00001,0.05",
        "halving.axis=training.lr", f"halving.metric={declared.key}", here,
    ]  # fmt: skip
    _, trials = expand("default", words)
    outcome, tracker = run_sweep(
        SweepPlan("mine", "", "the command", trials, Restart()), LineView(new_console(width=200))
    )
    assert outcome.exit_status == 0
    sweep = read_sweep(tracker.store, "mine")

    # Rounds, the line that they print, and a trial's end
    for trial in sweep.trials:
        told = trial.history([declared.key]).dropna()
        clients = trial.table("clients")
        assert clients is not None
        of = clients.groupby("round")["eval_acc"]
        expected = of.max() - of.min()
        assert told[declared.key].tolist() == pytest.approx(expected.tolist())
        assert trial.final["spread"] == told[declared.key].iloc[-1]
    assert re.search(r"round 1/2 .*\bspread 0\.\d{3}", capsys.readouterr().out)

    # Halving: the one with the larger spread after round 1 went no further
    first = {
        trial.run_id: trial.history([declared.key]).dropna()[declared.key].iloc[0]
        for trial in sweep.trials
    }
    for k in ("1", "2"):
        race = [t for t in sweep.trials if t.params["strategy.num_clusters"] == k]
        ends = sorted((first[t.run_id], t.final["rounds"]) for t in race)
        assert [rounds for _, rounds in ends] == [2, 1]

    # The report's table, its marks and its figures
    files = report(sweep, Choice(target=f"{declared.key}=1")).files
    [headings, *_] = [line for line in str(files["report.md"]).splitlines() if "spread" in line]
    assert "spread of clients (%)" in headings
    columns = next(csv.reader(str(files["report.csv"]).splitlines()))
    assert {"spread_mean", "spread_best"} <= set(columns)
    told = unescape(str(files["report.md"])).replace("\\", "")
    assert f"Target: {declared.key} <= 1;" in told
    assert {"plots/spread_over_rounds.png", "plots/spread_over_megabytes.png",
            "plots/spread_by_clusters.png"} <= files.keys()  # fmt: skip

    # The best cell has the lowest
    assert main(["best", "mine", "--metric", "spread", here]) == 0
    lowest = min(trial.final["spread"] for trial in sweep.trials)
    assert f"spread {lowest:.4f} (one trial)" in capsys.readouterr().out
    for command, name in ((["best", "--help"], "spread"), (["run", "--help"], declared.key)):
        main(command)
        assert name in capsys.readouterr().out


def test_a_metric_declared_here_ends_a_trial(declared: Metric) -> None:
    """All are at most 1, and lower is better: the first evaluated round is the last."""
    *_, result = events_of(small("stop.target=1", f"stop.metric={declared.key}", "model=logreg"))
    assert result.stopped.startswith(f"{declared.key}=")
    assert result.summary["rounds"] == 1
    with pytest.raises(ConfigError, match="no client holds out"):
        compose(["stop.target=1", f"stop.metric={declared.key}", "partition.eval_fraction=0"])
    assert Row(what="a row", metric=declared.key, at_most=1).metric == declared.key


def test_a_metric_of_a_catalog_of_ones_own() -> None:
    """Nothing is computed of what a round does not tell."""
    catalog = Catalog([SPREAD, Metric("3_clients/told", "told elsewhere")])
    assert catalog.computed(Observed()) == {}
    both = Observed({"eval_acc": np.array([0.25, 0.75])})
    assert catalog.computed(both) == {"3_clients/spread": 0.5}
    assert catalog.summary({"3_clients/spread": 0.5, "3_clients/told": 1.0}) == {"spread": 0.5}
