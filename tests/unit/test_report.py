import io
import math

import pandas as pd
import pytest
from rich.console import Console

from runner import report, report_text, stats
from runner.errors import RunnerError
from runner.figures import report as report_figures

ROWS = [
    {"partition": "iid", "num_clusters": "10", "seed": "0", "client_acc": 0.90, "acc": 0.5, "wall_s": 1.0},
    {"partition": "iid", "num_clusters": "10", "seed": "1", "client_acc": 0.94, "acc": 0.7, "wall_s": 3.0},
    {"partition": "iid", "num_clusters": "2", "seed": "0", "client_acc": 0.80, "acc": 0.6, "wall_s": 2.0},
    {"partition": "iid", "num_clusters": "2", "seed": "1"},
]


def test_cells_hold_mean_and_sample_deviation_over_seeds():
    table = report.results_table(ROWS)
    assert table["num_clusters"].tolist() == [10, 2]
    assert table["trials"].tolist() == [2, 1]
    assert table["failed"].tolist() == [0, 1]
    assert table["client_acc_mean"].tolist() == pytest.approx([0.92, 0.80])
    assert table["client_acc_std"][0] == pytest.approx(math.sqrt(0.0008))
    assert math.isnan(table["client_acc_std"][1])
    assert "ari_mean" not in table


def test_markdown_and_terminal_show_the_same():
    table = report.results_table(ROWS)
    lines = report.markdown_table(table).splitlines()
    assert lines[0] == (
        "| partition | num_clusters | trials | failed | client accuracy (%) | global accuracy (%) | time (s) |"
    )
    assert lines[2] == "| iid | 10 | 2 | 0 | 92.0 ± 2.8 | 60.0 ± 14.1 | 2.0 ± 1.4 |"
    assert lines[3] == "| iid | 2 | 1 | 1 | 80.0 | 60.0 | 2.0 |"
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(report.rich_table(table, "title"))
    assert "92.0 ± 2.8" in console.export_text()


def test_a_diverged_trial_shows_in_its_cell():
    table = report.results_table([{"seed": 0, "acc": 0.5, "wall_s": 1}, {"seed": 1, "acc": math.nan, "wall_s": 1}])
    assert math.isnan(table["acc_mean"][0])
    assert table["wall_s_mean"][0] == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_diverged_is_never_the_best(order: tuple[int, int]) -> None:
    """Whichever comes first: a comparison with nan is false both ways."""
    from types import SimpleNamespace

    values = [math.nan, 0.4]
    trials = [
        SimpleNamespace(
            final={"client_acc": values[i]}, status="FINISHED", params={"lr": i}, run_id=f"run{i}", command="make"
        )
        for i in order
    ]
    sweep = SimpleNamespace(name="grid", axes=("lr", "seed"), trials=trials)
    assert report.best_cell(sweep, "client_acc").startswith("lr=1\nclient_acc 0.4")
    assert report.best_cell(sweep, "client_acc", lowest=True).startswith("lr=1\n")


def test_the_clients_own_models_on_the_test_set_have_a_column() -> None:
    rows = [{"seed": "0", "client_acc": 0.5, "client_test_acc": 0.25, "wall_s": 1.0}]
    lines = report.markdown_table(report.results_table(rows)).splitlines()
    assert lines[0] == "| trials | client accuracy (%) | client test accuracy (%) | time (s) |"
    assert lines[2] == "| 1 | 50.0 | 25.0 | 1.0 |"


def test_an_axis_that_some_trials_lack_makes_cells_of_its_own():
    rows = [{"strategy": "fedavg", "acc": 0.1}, {"strategy": "kmeans", "num_clusters": "2", "acc": 0.2}]
    assert len(report.results_table(rows)) == 2
    assert report.markdown_table(report.results_table(rows)).splitlines()[2].startswith("| fedavg | - |")


def test_all_trials_failed():
    table = report.results_table([{"partition": "iid", "seed": "0"}])
    assert table.to_dict("records") == [{"partition": "iid", "trials": 0, "failed": 1}]


def test_several_other_axes_become_panels():
    rows = [
        {"dataset": d, "shift": s, "partition": p, "num_clusters": k, "seed": 0, "acc": 0.5, "wall_s": 1.0}
        | {"client_acc_jain": 0.9 + k / 100, "ami": float("nan") if s == "x" else k / 10}  # metrics are no axes
        for d in "ab" for s in "xy" for p in ("iid", "dirichlet") for k in (1, 2)
    ]  # fmt: skip
    axes = ["dataset", "shift", "partition", "num_clusters", "seed"]
    figure = report_figures.cluster_effects(report.trials_frame(rows), axes)["acc_by_clusters"]
    assert [ax.get_title() for ax in figure.axes] == [
        "dataset, shift: a, x", "dataset, shift: a, y", "dataset, shift: b, x", "dataset, shift: b, y",
    ]  # fmt: skip


def test_no_figure_without_cluster_counts():
    assert report_figures.cluster_effects(report.trials_frame([{"partition": "iid", "acc": 0.5}]), ["partition"]) == {}


def grid(values):
    """Rows of one problem: number of clusters -> client accuracies of the seeds 0, 1, ..."""
    return [
        {"partition": "iid", "num_clusters": k, "seed": seed, "client_acc": value, "ari": 1.0 if k == 4 else 0.5}
        for k, accuracies in values.items()
        for seed, value in enumerate(accuracies)
    ]


def test_the_interval_is_students_over_the_seeds():
    table = report.results_table(grid({1: [0.5, 0.6, 0.7]}))
    assert table["client_acc_ci"][0] == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-6)  # t(0.975, 2)
    assert "60.0 ± 10.0 [35.2, 84.8]" in report.texts(table, full=True)[1]


def test_the_best_is_marked_only_where_it_is_better_than_each_other():
    clear = report.results_table(grid({1: [0.50, 0.52, 0.51], 2: [0.60, 0.61, 0.60], 4: [0.90, 0.92, 0.93]}))
    assert clear["client_acc_best"].tolist() == [False, False, True]
    assert report.texts(clear, full=True, bold="**{}**")[3][3].startswith("**91.7** ± 1.5 [")
    unclear = report.results_table(grid({1: [0.50, 0.52, 0.51], 4: [0.90, 0.40, 0.93]}))
    assert not unclear["client_acc_best"].any()


def test_only_ways_to_solve_the_same_problem_are_compared():
    rows = grid({1: [0.5, 0.51, 0.52], 4: [0.9, 0.92, 0.93]})
    easier = [{**row, "partition": "dirichlet", "client_acc": 0.99} for row in rows]
    table = report.results_table(rows + easier)
    assert table["client_acc_best"].tolist() == [False, True, False, False]


def test_the_recovery_rate_is_the_share_of_trials_that_found_the_groups():
    table = report.results_table(
        [*grid({2: [0.1, 0.1], 4: [0.1, 0.1]}), {**grid({4: [0.1]})[0], "seed": 2, "ari": 0.4}]
    )
    assert table["recovered"].tolist() == [0.0, pytest.approx(2 / 3)]


def test_rounds_and_megabytes_to_a_target():
    curve = pd.DataFrame({"round": [0, 1, 2, 3], "mb": [0.0, 2.0, 4.0, 6.0], "target": [0.1, math.nan, 0.8, 0.7]})
    assert report.to_target(curve, report.Target.parse("0.8")) == {"rounds_to_target": 2.0, "mb_to_target": 4.0}
    missed = report.to_target(curve, report.Target("x", 0.9))
    assert math.isnan(missed["rounds_to_target"])
    rows = [{"k": 1, "seed": 0, "rounds_to_target": 2.0, "acc": 0.1}, {"k": 1, "seed": 1, **missed, "acc": 0.1}]
    table = report.results_table(rows)
    assert (table["reached"][0], table["rounds_to_target_mean"][0]) == (1, 2.0)


def test_targets_are_read_or_refused():
    assert report.Target.parse("0.9") == report.Target("3_clients/acc", 0.9)
    assert report.Target.parse("1_global/acc=0.5") == report.Target("1_global/acc", 0.5)
    with pytest.raises(RunnerError, match="--target high is no target"):
        report.Target.parse("high")


@pytest.mark.parametrize(
    ("first", "second", "test", "p"),
    [
        ([1.0, 2.0, 4.0], [0.0, 0.0, 0.0], "t", 0.1181),  # t = 2.6458 on 2 degrees of freedom
        ([1.0, 1.0], [0.5, 0.5], "t", 0.0),
        ([1.0], [0.5], "t", 1.0),
        ([0.5, 0.6], [0.5, 0.6], "t", 1.0),
        ([1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 0, 0], "wilcoxon", 2 / 64),
    ],
)
def test_paired_tests(first, second, test, p):
    assert stats.p_different(first, second, test) == pytest.approx(p, abs=1e-4)


def test_latex_is_escaped_and_ruled_by_booktabs():
    text = report_text.latex([["a_b", "acc (%)"], ["x", "\\textbf{91.0} ± 1.0"]], "p < 0.05 & more", "my sweep")
    assert r"a\_b & acc (\%) \\" in text
    assert r"x & \textbf{91.0} $\pm$ 1.0 \\" in text
    assert [rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [True] * 3
    assert r"p $<$ 0.05 \& more" in text
