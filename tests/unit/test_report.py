import io
import math

import pytest
from rich.console import Console

from runner import report

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


def test_an_axis_that_some_trials_lack_makes_cells_of_its_own():
    rows = [{"strategy": "fedavg", "acc": 0.1}, {"strategy": "kmeans", "num_clusters": "2", "acc": 0.2}]
    assert len(report.results_table(rows)) == 2
    assert report.markdown_table(report.results_table(rows)).splitlines()[2].startswith("| fedavg | - |")


def test_all_trials_failed():
    table = report.results_table([{"partition": "iid", "seed": "0"}])
    assert table.to_dict("records") == [{"partition": "iid", "trials": 0, "failed": 1}]


def test_files_of_a_sweep():
    files = report.sweep_files(ROWS)
    assert set(files) == {
        "results.md", "results.csv", "trials.csv", "plots/client_acc_by_clusters.png", "plots/acc_by_clusters.png",
    }  # fmt: skip
    assert files["trials.csv"].count("\n") == 5


def test_several_other_axes_become_panels():
    rows = [
        {"dataset": d, "shift": s, "partition": p, "num_clusters": k, "seed": 0, "acc": 0.5}
        for d in "ab" for s in "xy" for p in ("iid", "dirichlet") for k in (1, 2)
    ]  # fmt: skip
    figure = report.sweep_figures(rows)["plots/acc_by_clusters.png"]
    assert [ax.get_title() for ax in figure.axes] == [
        "dataset, shift: a, x", "dataset, shift: a, y", "dataset, shift: b, x", "dataset, shift: b, y",
    ]  # fmt: skip


def test_no_figure_without_cluster_counts():
    assert report.sweep_figures([{"partition": "iid", "seed": 0, "acc": 0.5}]) == {}
