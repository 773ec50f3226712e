import io
import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from fedsweep.catalog import CATALOG
from fedsweep.config import RunConfig
from fedsweep.errors import RunnerError
from fedsweep.records import TrialRow
from fedsweep.report import figures as report_figures
from fedsweep.report import stats
from fedsweep.report import text as report_text
from fedsweep.report.best import best_of
from fedsweep.report.choice import EVERYTHING, Choice
from fedsweep.report.curves import Target, to_target, with_labels
from fedsweep.report.layout import layout, texts
from fedsweep.report.results import results_table, trials_table
from fedsweep.report.terminal import rich_table
from fedsweep.sweeps.compose import groups


def row(axes, **metrics):
    """A trial; axes as ``partition=iid strategy.num_clusters=2 seed=0``."""
    return TrialRow(dict(word.split("=") for word in axes.split()), metrics)


ROWS = [
    row("partition=iid strategy.num_clusters=10 seed=0", client_acc=0.90, acc=0.5, wall_s=1.0),
    row("partition=iid strategy.num_clusters=10 seed=1", client_acc=0.94, acc=0.7, wall_s=3.0),
    row("partition=iid strategy.num_clusters=2 seed=0", client_acc=0.80, acc=0.6, wall_s=2.0),
    row("partition=iid strategy.num_clusters=2 seed=1"),
]


def test_cells_hold_mean_and_sample_deviation_over_seeds():
    cells = results_table(ROWS)
    table = cells.numbers
    assert cells.axes["strategy.num_clusters"].tolist() == [10, 2]
    assert table["trials"].tolist() == [2, 1]
    assert table["failed"].tolist() == [0, 1]
    assert table["client_acc_mean"].tolist() == pytest.approx([0.92, 0.80])
    assert table["client_acc_std"][0] == pytest.approx(math.sqrt(0.0008))
    assert math.isnan(table["client_acc_std"][1])
    assert "ari_mean" not in table


def test_markdown_and_terminal_show_the_same():
    table = results_table(ROWS)
    lines = report_text.markdown(texts(table)).splitlines()
    assert lines[0] == (
        "| partition | num_clusters | trials | failed | client accuracy (%) "
        "| global accuracy (%) | time (s) |"
    )
    assert lines[2] == "| iid | 10 | 2 | 0 | 92.0 ± 2.8 | 60.0 ± 14.1 | 2.0 ± 1.4 |"
    assert lines[3] == "| iid | 2 | 1 | 1 | 80.0 | 60.0 | 2.0 |"
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(rich_table(layout(table, EVERYTHING), "title"))
    assert "92.0 ± 2.8" in console.export_text()


def test_a_diverged_trial_shows_in_its_cell():
    rows = [row(f"seed={i}", acc=acc, wall_s=1.0) for i, acc in enumerate([0.5, math.nan, 0.6])]
    table = results_table(rows)
    assert math.isnan(table.numbers["acc_mean"][0])
    assert table.numbers["wall_s_mean"][0] == 1
    assert table.numbers["trials"].tolist() == [3]
    for full in (False, True):
        assert texts(table, full=full)[1][1] == "nan (1 of 3)"


def test_a_metric_that_some_trials_of_a_cell_lack_says_so():
    rows = [
        row("seed=0", acc=0.5, ari=1.0),
        row("seed=1", acc=0.7),
        row("seed=2", acc=0.6, ari=0.5),
    ]
    table = results_table(rows)
    assert texts(table)[1] == ["3", "60.0 ± 10.0", "0.75 ± 0.35 (2 of 3)"]
    assert table.numbers["recovered"].tolist() == [0.5]


def test_a_caption_tells_of_recovered_groups_where_there_are_some() -> None:
    told = "Recovered: trials whose clusters are the known groups (ARI = 1)."
    known = results_table([row("seed=0", acc=0.5, ari=1.0)])
    unknown = results_table([row("seed=0", acc=0.5)])
    captions = [layout(cells, EVERYTHING, full=True).caption for cells in (known, unknown)]
    assert [told in caption for caption in captions] == [True, False]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_diverged_is_never_the_best(order: tuple[int, int]) -> None:
    """Whichever comes first: a comparison with nan is false both ways."""
    from types import SimpleNamespace

    values = [math.nan, 0.4]
    trials = [
        SimpleNamespace(
            final={"client_acc": values[i]},
            status="FINISHED",
            params={},
            run_id=f"run{i}",
            command="make",
            stopped="",
        )
        for i in order
    ]
    places = [{"training.lr": str(i), "seed": "0"} for i in order]
    sweep = SimpleNamespace(name="grid", places=places, trials=trials)
    assert repr(best_of(sweep, "client_acc")).startswith("training.lr=1\nclient_acc 0.4")
    assert repr(best_of(sweep, "client_acc", lowest=True)).startswith("training.lr=1\n")


def test_the_best_of_each_problem_is_told() -> None:
    """Two data sets are no ways to solve one problem: the easier one's best is no winner."""
    from types import SimpleNamespace

    ends = {"digits": {"0.1": 0.7, "1": 0.9}, "mnist": {"0.1": 0.6, "1": 0.5}}
    places = [
        {"dataset": name, "training.lr": lr, "seed": "0"} for name in ends for lr in ends[name]
    ]
    trials = [
        SimpleNamespace(
            final={"client_acc": ends[at["dataset"]][at["training.lr"]]}, status="FINISHED",
            params=at, run_id=f"run{i}", command="make", stopped="",
        )
        for i, at in enumerate(places)
    ]  # fmt: skip
    rows = [
        row(" ".join(f"{key}={value}" for key, value in at.items()), **trial.final)
        for at, trial in zip(places, trials, strict=True)
    ]
    sweep = SimpleNamespace(
        name="grid", places=places, trials=trials, axes=list(places[0]), rows=lambda: rows
    )
    best = best_of(sweep, "client_acc")
    assert (best.place["dataset"], [other.run_id for other in best.others]) == ("digits", ["run2"])
    told = repr(best).splitlines()
    assert told[-2].startswith("1 other problem, which can't be compared with this one; --where")
    assert told[-1] == "  dataset=mnist training.lr=0.1: client_acc 0.6000"
    chosen = best_of(sweep, "client_acc", choice=Choice(where={"dataset": "mnist"}))
    assert (chosen.run_id, list(chosen.others)) == ("run2", [])
    lowest = best_of(sweep, "client_acc", True, Choice(where={"training.lr": ["1"]}))
    assert (lowest.run_id, len(lowest.others)) == ("run3", 1)
    with pytest.raises(RunnerError, match="no trial is left of dataset=cifar10; there is dataset="):
        best_of(sweep, "client_acc", choice=Choice(where={"dataset": "cifar10"}))


def test_what_the_best_is_not_a_mean_over_is_told() -> None:
    """One seed of three may be luck, and a trial that halving stopped is no whole one."""
    from types import SimpleNamespace

    ends = {("a", 0): 0.9, ("a", 1): None, ("a", 2): None, ("b", 0): 0.5, ("b", 1): 0.6}
    trials = [
        SimpleNamespace(
            final={"acc": value} if value else {}, status="FINISHED" if value else "FAILED",
            params={}, run_id=f"{way}{seed}", command="make",
            stopped="halving over training.lr" if value == 0.9 else "",
        )
        for (way, seed), value in ends.items()
    ]  # fmt: skip
    places = [{"strategy": way, "seed": str(seed)} for way, seed in ends]
    told = repr(best_of(SimpleNamespace(name="grid", places=places, trials=trials), "acc"))
    assert "\n2 of 5 trials have no acc, 2 of them of this cell\n" in told
    assert "\nhere 1 of 1 trials ended before their last round (halving over training.lr" in told
    whole = SimpleNamespace(name="grid", places=places[3:], trials=trials[3:])
    assert "have no" not in repr(best_of(whole, "acc"))


def test_trials_that_ended_early_are_counted_by_the_rule() -> None:
    from types import SimpleNamespace

    from fedsweep.tracking.read import StoredTrial, ended_early

    said = [
        "halving over training.lr: 3_clients/acc=0.1 after round 2 is not among the best 1 of 3",
        "3_clients/acc=0.9 reached stop.target=0.9",
        "halving over training.lr: 3_clients/acc is missing or not finite after round 2 is not ...",
        "",
    ]
    trials = []
    for told in said:
        data = SimpleNamespace(tags={"stopped": told} if told else {})
        trials.append(StoredTrial(None, SimpleNamespace(data=data, info=None)))  # type: ignore[arg-type]
    assert ended_early(trials).startswith(
        "3 of 4 trials ended before their last round (halving over training.lr: 2, stop.target: 1);"
    )
    assert ended_early(trials[3:]) == ""


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("fedsweep app apps/mine run_config.lr=0.1", "no sweep's file runs a Flower app; .*lr=0.1"),
        ("make", "the store does not tell the words of run run0"),
    ],
)
def test_what_no_file_runs_again_is_told(command: str, told: str) -> None:
    from types import SimpleNamespace

    trial = SimpleNamespace(
        final={"acc": 0.5}, status="FINISHED", params={}, run_id="run0", command=command, stopped=""
    )
    sweep = SimpleNamespace(name="grid", places=[{"seed": "0"}], trials=[trial])
    with pytest.raises(RunnerError, match=told):
        best_of(sweep, "acc").file()


def test_the_clients_own_models_on_the_test_set_have_a_column() -> None:
    rows = [row("seed=0", client_acc=0.5, client_test_acc=0.25, wall_s=1.0)]
    lines = report_text.markdown(texts(results_table(rows))).splitlines()
    assert lines[0] == "| trials | client accuracy (%) | client test accuracy (%) | time (s) |"
    assert lines[2] == "| 1 | 50.0 | 25.0 | 1.0 |"


def test_an_axis_that_some_trials_lack_makes_cells_of_its_own():
    rows = [
        row("strategy=fedavg", acc=0.1),
        row("strategy=kmeans strategy.num_clusters=2", acc=0.2),
    ]
    cells = results_table(rows)
    assert len(cells.axes) == 2
    assert report_text.markdown(texts(cells)).splitlines()[2:] == [
        "| fedavg | - | 1 | 10.0 |",
        "| kmeans | 2 | 1 | 20.0 |",
    ]


def test_all_trials_failed():
    table = results_table([row("partition=iid seed=0")])
    assert table.frame().to_dict("records") == [{"partition": "iid", "trials": 0, "failed": 1}]


def test_axes_with_the_same_last_word_are_two():
    """apfl's alpha beside Dirichlet's: four cells of three seeds."""
    places = [(a, b) for a in ("0.1", "1.0") for b in ("0.1", "1.0")]
    rows = [
        row(f"partition.alpha={a} strategy.alpha={b} seed={seed}", acc=float(a) / 2 + float(b) / 4)
        for a, b in places
        for seed in range(3)
    ]
    table = results_table(rows)
    assert table.numbers["trials"].tolist() == [3, 3, 3, 3]
    assert table.numbers["acc_mean"].tolist() == pytest.approx([0.075, 0.3, 0.525, 0.75])
    assert texts(table)[0][:3] == ["partition.alpha", "strategy.alpha", "trials"]


def test_an_axis_called_like_a_metric_stands_beside_it():
    rows = [row(f"stop.wall_s={s} rounds={r} seed={i}", wall_s=s / 2, rounds=1.0)
            for s in (10, 20) for r in (5, 9) for i in range(2)]  # fmt: skip
    table = results_table(rows)
    lines = texts(table)
    assert lines[0] == ["wall_s", "rounds", "trials", "time (s)"]
    assert [line[:2] for line in lines[1:]] == [["10", "5"], ["10", "9"], ["20", "5"], ["20", "9"]]
    assert [line[-1] for line in lines[1:]] == [
        "5.0 ± 0.0",
        "5.0 ± 0.0",
        "10.0 ± 0.0",
        "10.0 ± 0.0",
    ]


def test_no_metric_has_the_name_of_a_setting():
    """So no column of a CSV is there twice."""
    assert CATALOG.finals.keys().isdisjoint({*RunConfig.model_fields, *groups()} - {"rounds"})
    assert "rounds" not in CATALOG.tabled
    assert not [name for name in CATALOG.finals if "." in name]


def test_texts_that_are_one_number_are_two_cells():
    rows = [row(f"dataset.id={name} seed={i}", acc=0.5) for name in ("7", "007") for i in range(2)]
    assert results_table(rows).axes["dataset.id"].tolist() == ["7", "007"]


def test_whole_numbers_stay_whole_where_some_trials_lack_them():
    """Methods with and without clusters are crossed: no 2.0 clusters, no nan clusters."""
    rows = [row("strategy=fedavg seed=0", acc=0.1)]
    rows += [row(f"strategy=kmeans strategy.num_clusters={k} seed=0", acc=0.2) for k in (1, 2, 10)]
    trials = trials_table(rows)
    labels = with_labels(pd.DataFrame({"trial": range(4)}), trials)
    assert labels["line"].tolist() == [
        "fedavg",
        "kmeans, 1 cluster",
        "kmeans, 2 clusters",
        "kmeans, 10 clusters",
    ]
    assert [line[1] for line in texts(results_table(rows))[1:]] == [
        "-",
        "1",
        "2",
        "10",
    ]
    assert "2.0" not in trials.frame().to_csv()


def test_panels_are_problems_and_lines_are_ways_to_solve_them():
    rows = [
        row(
            f"shift=noise shift.noise_std={s} dataset.normalize={n} partition.alpha=0.1 "
            f"strategy.alpha={a}",
            acc=0.1,
        )
        for s in (1, 2)
        for n in ("unit", "standard")
        for a in (0.1, 0.2)
    ]
    labels = with_labels(pd.DataFrame({"trial": range(8)}), trials_table(rows))
    assert labels["panel"].tolist()[::2] == [
        "noise_std=1, unit", "noise_std=1, standard", "noise_std=2, unit", "noise_std=2, standard"
    ]  # fmt: skip
    assert labels["line"].tolist()[:2] == ["strategy.alpha=0.1", "strategy.alpha=0.2"]


def test_ways_that_read_alike_are_lines_of_their_own():
    """A setting of one linkage or of the other: a line of both would be a mean over ways."""
    rows = [
        row(f"strategy=flhc strategy.{key}=full seed={seed}", acc=0.5)
        for key in ("linkage", "metric")
        for seed in (0, 1)
    ]
    rows += [row(f"strategy=flhc strategy.linkage=ward strategy.metric={m} seed=0") for m in "ab"]
    labels = with_labels(pd.DataFrame({"trial": range(6)}), trials_table(rows))
    assert labels["line"].tolist() == [
        "linkage=full", "linkage=full", "metric=full", "metric=full", "ward, a", "ward, b"
    ]  # fmt: skip


def test_a_split_is_that_of_the_first_trial_which_has_one_and_those_left_out_are_counted():
    rows = [row(f"partition={p} seed={s}", acc=0.5) for p in "abcdefgh" for s in (0, 1)]
    read = []

    def table(trial, name):
        read.append(trial)
        return None if trial % 2 == 0 else f"{name}{trial}"

    found, problems = report_figures._splits(range(16), trials_table(rows), table)
    assert found == {p: f"split{2 * i + 1}" for i, p in enumerate("abcdef")}
    assert (problems, len(read)) == (8, 12)


def test_several_other_axes_become_panels():
    rows = [
        row(f"dataset={d} shift={s} partition={p} strategy.num_clusters={k} seed=0", acc=0.5,
            wall_s=1.0)
        for d in "ab" for s in "xy" for p in ("iid", "dirichlet") for k in (1, 2)
    ]  # fmt: skip
    figure = report_figures.cluster_effect(trials_table(rows), "acc")
    assert [ax.get_title() for ax in figure.axes] == [
        "dataset, shift: a, x", "dataset, shift: a, y", "dataset, shift: b, x",
        "dataset, shift: b, y",
    ]  # fmt: skip


def test_figures_of_a_crossed_grid_have_no_panel_of_nothing():
    rows = [
        row("strategy=fedavg seed=0", acc=0.1),
        row("strategy=flhc strategy.num_clusters=2 seed=0", acc=0.1),
    ]
    rows += [
        row(f"strategy=kmeans strategy.num_clusters={k} strategy.sketch={s} seed=0", acc=0.2)
        for k in (1, 2)
        for s in (0, 64)
    ]
    figure = report_figures.cluster_effect(trials_table(rows), "acc")
    assert [ax.get_title() for ax in figure.axes] == ["sketch: -", "sketch: 0", "sketch: 64"]
    assert all(ax.lines for ax in figure.axes)
    assert figure.axes[0].get_xlabel() == "number of clusters"


def grid(values):
    """Rows of one problem: number of clusters -> client accuracies of the seeds 0, 1, ..."""
    return [
        row(
            f"partition=iid strategy.num_clusters={k} seed={seed}",
            client_acc=value,
            ari=1.0 if k == 4 else 0.5,
        )
        for k, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]


def marks(rows, metric="client_acc", test="t"):
    return results_table(rows, test).numbers[f"{metric}_best"].tolist()


def test_the_interval_is_students_over_the_seeds():
    table = results_table(grid({1: [0.5, 0.6, 0.7]}))
    assert table.numbers["client_acc_ci"][0] == pytest.approx(
        4.302653 * 0.1 / math.sqrt(3), rel=1e-6
    )  # t(0.975, 2)
    assert "60.0 ± 10.0 [35.2, 84.8]" in texts(table, full=True)[1]


def test_two_seeds_have_a_range_and_no_interval():
    """Student's interval of .2 and .25 would be [-9.3, 54.3]."""
    table = results_table(grid({1: [0.2, 0.25], 2: [0.5]}))
    assert table.numbers["client_acc_ci"].isna().all()
    assert [line[3] for line in texts(table, full=True)[1:]] == [
        "22.5 ± 3.5 (20.0 to 25.0)",
        "50.0",
    ]


CLEAR = {1: [0.50, 0.52, 0.51], 2: [0.60, 0.61, 0.60], 4: [0.90, 0.92, 0.93]}


def test_the_best_is_marked_only_where_it_is_better_than_each_other():
    clear = results_table(grid(CLEAR))
    assert clear.numbers["client_acc_best"].tolist() == [False, False, True]
    marked = texts(clear, full=True)[3][3]
    assert (marked.strong, marked.rest[:8]) == ("91.7", " ± 1.5 [")
    assert marks(grid({1: [0.50, 0.52, 0.51], 4: [0.90, 0.40, 0.93]})) == [False, False]


def test_the_better_of_two_rows_is_marked():
    assert marks(grid({row: CLEAR[row] for row in (1, 4)})) == [False, True]


def test_two_seeds_have_no_mark():
    assert marks(grid({1: [0.50, 0.51], 4: [0.90, 0.91]})) == [False, False]


def test_the_same_difference_at_each_seed_is_tested_by_its_signs():
    """2 / 2^n: .25 at three seeds, .0625 at five, .03125 at six."""
    for count, marked in ((3, False), (5, False), (6, True)):
        values = {1: [0.5] * count, 4: [0.9] * count}
        assert marks(grid(values), "client_acc") == [False, marked]
        assert marks(grid(values), "ari") == [False, marked]


def test_marks_are_corrected_for_the_number_of_rows():
    """Each comparison has p = .0351 (t = 5.196, 2 degrees of freedom); Holm asks for .025."""
    two, three = {1: [0.7, 0.8, 0.9], 4: [0.8, 0.95, 1.1]}, {2: [0.7, 0.8, 0.9]}
    assert stats.p_different(two[4], two[1], "t") == pytest.approx(0.0351, abs=1e-4)
    assert marks(grid(two)) == [False, True]
    assert marks(grid({**three, **two})) == [False, False, False]


@pytest.mark.parametrize(("third", "marked"), [({"client_acc": 0.9}, True), ({}, False)])
def test_a_method_that_has_no_such_metric_is_no_rival(third: dict[str, float], marked: bool):
    """IFCA has no global model; one of which no trial has finished might have been better."""
    rows = [
        row(f"strategy={name} seed={seed}", acc=value * (1 + seed / 100), client_acc=0.5)
        for name, value in (("fedavg", 0.7), ("kmeans", 0.4))
        for seed in range(3)
    ]
    rows += [row(f"strategy=ifca seed={seed}", **third) for seed in range(3)]
    cells = results_table(rows)
    assert cells.numbers["acc_best"].tolist() == [marked, False, False]
    caption = layout(cells, Choice(columns=["acc"])).caption
    said = "Bold: better than each other row that has the metric (" if marked else "No row is"
    assert said in caption


def test_a_row_that_diverged_is_never_the_best_and_loses_by_its_signs():
    lost = {1: [0.5, math.nan, 0.5, 0.5, 0.5, 0.5], 4: [0.9] * 6}
    assert marks(grid(lost)) == [False, True]
    assert marks(grid({1: lost[1], 4: [0.1] * 6})) == [False, False]
    assert marks(grid({1: [math.nan] * 6, 4: [0.1] * 6})) == [False, True]
    assert marks(grid({1: [math.nan] * 3, 4: [math.nan] * 3})) == [False, False]


@pytest.mark.parametrize(
    "axis",
    ["dataset=", "dataset.normalize=", "partition=", "partition.alpha=", "partition.sizes=",
     "shift.noise_std=",
     "shift.drift_round=", "shift.newcomers=", "num_clients=", "strategy.fraction_evaluate="],
)  # fmt: skip
def test_only_ways_to_solve_the_same_problem_are_compared(axis):
    rows = grid({1: [0.5, 0.51, 0.52], 4: [0.9, 0.92, 0.93]})
    first = [TrialRow({axis.strip("="): "0.1", **r.axes}, r.metrics) for r in rows]
    easier = [
        TrialRow({**r.axes, axis.strip("="): "0.2"}, {**r.metrics, "client_acc": 0.99})
        for r in first
    ]
    assert marks(first + easier) == [False, True, False, False]


def test_a_methods_own_settings_are_no_problem():
    rows = [
        row(f"strategy.alpha={a} seed={i}", acc=a + i / 100 + a * i / 1000)
        for a in (0.1, 0.9)
        for i in range(3)
    ]
    assert marks(rows, "acc") == [False, True]


def test_the_recovery_rate_is_the_share_of_trials_that_found_the_groups():
    missed = row("partition=iid strategy.num_clusters=4 seed=2", client_acc=0.1, ari=0.4)
    table = results_table([*grid({2: [0.1, 0.1], 4: [0.1, 0.1]}), missed])
    assert table.numbers["recovered"].tolist() == [0.0, pytest.approx(2 / 3)]


def test_rounds_and_megabytes_to_a_target():
    curve = pd.DataFrame(
        {"round": [0, 1, 2, 3], "mb": [0.0, 2.0, 4.0, 6.0], "target": [0.1, math.nan, 0.8, 0.7]}
    )
    assert to_target(curve, Target.parse("0.8")) == {
        "rounds_to_target": 2.0,
        "mb_to_target": 4.0,
    }
    timed = to_target(curve.assign(virtual_s=[0.0, 7.0, 9.0, 20.0]), Target.parse("0.8"))
    assert timed["virtual_s_to_target"] == 9.0
    missed = to_target(curve, Target("3_clients/acc", 0.9))
    assert math.isnan(missed["rounds_to_target"])
    rows = [row("seed=0", rounds_to_target=2.0, acc=0.1), row("seed=1", **missed, acc=0.1)]
    table = results_table(rows).numbers
    assert (table["reached"][0], table["rounds_to_target_mean"][0]) == (1, 2.0)


def test_targets_are_read_or_refused():
    assert Target.parse("0.9") == Target("3_clients/acc", 0.9)
    assert Target.parse("1_global/acc=0.5") == Target("1_global/acc", 0.5)
    with pytest.raises(RunnerError, match="--target high is no target"):
        Target.parse("high")


@pytest.mark.parametrize(
    ("first", "second", "test", "p"),
    [
        ([1.0, 2.0, 4.0], [0.0, 0.0, 0.0], "t", 0.1181),  # t = 2.6458 on 2 degrees of freedom
        ([1.0, 1.0], [0.5, 0.5], "t", 1.0),
        ([1.0, 1.0, 1.0], [0.5, 0.5, 0.5], "t", 0.25),
        ([0.1 + 0.2, 0.3, 0.3], [0.2, 0.2, 0.1 + 0.1], "t", 0.25),  # the same but for rounding
        ([0.1 + 0.2] * 6, [0.3] * 6, "t", 1.0),  # nothing but rounding
        ([1.0] * 6, [math.nan] + [0.5] * 5, "t", 2 / 64),
        ([1.0] * 6, [math.nan] * 5 + [2.0], "t", 14 / 64),  # five of six: 2 (1 + 6) / 64
        ([1.0], [0.5], "t", 1.0),
        ([0.5, 0.6, 0.7], [0.5, 0.6, 0.7], "t", 1.0),
        ([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0], "wilcoxon", 2 / 64),
        ([1, 1, 2, 2, 3, 3], [0, 0, 0, 0, 0, 0], "wilcoxon", 2 / 64),  # exact with ties too
        ([1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], "wilcoxon", 2 / 64),
        ([1] * 7 + [2] * 6, [0] * 13, "wilcoxon", 2 / 2**13),  # the most pairs that are exact
        (
            [1, 2, 3, 4, -5],
            [0, 0, 0, 0, 0],
            "wilcoxon",
            20 / 32,
        ),  # ranks 10 to 5: 20 of 32 sums are as far from 7.5
    ],
)
def test_paired_tests(first, second, test, p):
    assert stats.p_different(first, second, test) == pytest.approx(p, abs=1e-4)


def test_holms_procedure():
    assert stats.holds_all([0.01, 0.049, 0.02])  # .05 / 3, .05 / 2, .05
    assert not stats.holds_all([0.01, 0.049, 0.026])
    assert not stats.holds_all([0.017, 0.018, 0.019])


@pytest.mark.parametrize("test", ["t", "wilcoxon"])
@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("seeds", [3, 6])
def test_rows_that_do_not_differ_are_marked_at_the_level_at_most(test, rows, seeds):
    """Of 400 blocks of noise more than 33 are marked once in a hundred times (binomial, 5 %)."""
    draw = np.random.default_rng(rows * seeds)
    blocks = [[dict(enumerate(draw.normal(size=seeds))) for _ in range(rows)] for _ in range(400)]
    assert sum(stats.clear_best(block, test) is not None for block in blocks) <= 33
