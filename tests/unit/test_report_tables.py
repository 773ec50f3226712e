"""A table as somebody chose it: what it holds, what it says of itself, what is refused."""

import io
import math
import re

import numpy as np
import pytest
from pydantic import ValidationError

from fedsweep.errors import RunnerError
from fedsweep.records import TrialRow
from fedsweep.report.choice import Choice, inches
from fedsweep.report.layout import chosen, layout
from fedsweep.report.report import printed
from fedsweep.report.results import results_table
from fedsweep.report.terminal import ending, fitted
from fedsweep.report.text import latex
from fedsweep.report.tuning import tuned
from fedsweep.sweeps.views import new_console

AXES = ("shift", "partition.alpha", "strategy", "strategy.num_clusters", "training.lr", "seed")
RATES = (0.01, 0.1)
SEEDS = (0, 1, 2)


def accuracy(shift, alpha, strategy, rate, seed):
    """A number that tells where it comes from, with a deviation over seeds of .01."""
    base = {"none": 0.8, "rotation": 0.5}[shift] + alpha / 100 + rate
    return base + {"fedavg": 0.0, "kmeans": 0.05}[strategy] + seed / 100


ROWS = [
    TrialRow(
        {
            "shift": shift, "partition.alpha": str(alpha), "strategy": strategy,
            **({"strategy.num_clusters": "4"} if strategy == "kmeans" else {}),
            "training.lr": str(rate), "seed": str(seed),
        },
        {
            "client_acc": accuracy(shift, alpha, strategy, rate, seed),
            "acc": 0.7 - rate, "wall_s": 1.5,
            **({"ari": 1.0} if strategy == "kmeans" and shift == "rotation" else {}),
        },
    )
    for shift in ("none", "rotation")
    for alpha in (0.1, 1)
    for strategy in ("fedavg", "kmeans")
    for rate in RATES
    for seed in SEEDS
]  # fmt: skip
SETTINGS = [{**row.axes, "dataset.name": "digits", "num_clients": "20"} for row in ROWS]


def table(trials=ROWS, /, **words):
    return chosen(Choice(**words), trials, AXES, SETTINGS).table


def plain(lines):
    return [[cell if isinstance(cell, str) else cell.strong + cell.rest for cell in line]
            for line in lines]  # fmt: skip


def test_methods_go_down_and_conditions_across():
    made = table(columns="client_acc,ari", rows="strategy", by="shift,alpha", where={"lr": "0.1"})
    assert made.down == ("strategy",)
    assert made.conditions() == [
        ((shift, alpha), 2) for shift in ("none", "rotation") for alpha in ("0.1", "1.0")
    ]
    assert made.condition(("none", "0.1")) == "no shift, alpha = 0.1"
    headings, fedavg, kmeans = plain(made.lines())
    assert headings[:3] == [
        "strategy", "no shift, alpha = 0.1: client accuracy (%)", "no shift, alpha = 0.1: ARI"
    ]  # fmt: skip
    assert fedavg[:3] == ["FedAvg", "91.1 ± 1.0", "-"]
    assert kmeans[:3] == ["K-means", "96.1 ± 1.0", "-"]
    assert kmeans[5:7] == ["66.1 ± 1.0", "1.00 ± 0.00"]


def test_no_cell_is_a_mean_over_anything_but_seeds():
    """Axes that are not named go down, and whoever asked is told so."""
    made = table(columns="client_acc", rows="strategy")
    assert made.down == ("strategy", "shift", "alpha", "lr")
    assert len(made.labels) == 16
    assert [cell.trials for line in made.cells for cell in line] == [3] * 16
    assert "rows are also by shift, partition.alpha, training.lr" in made.remarks[0]


def test_what_one_value_has_is_told_in_the_caption():
    made = table(rows="strategy", where={"shift": "rotation", "alpha": "1.0", "lr": "0.1"})
    assert made.down == ("strategy",)
    assert made.remarks == ()
    assert made.caption.startswith(
        "rotation, alpha = 1, num_clusters = 4 where it applies, lr = 0.1. Mean ± standard "
        "deviation over the seeds."
    )


def test_rows_that_are_clearly_the_best_are_bold_and_the_test_is_named():
    rows = [
        TrialRow({**row.axes}, {"client_acc": row.metrics["client_acc"] + int(row.axes["seed"])
                                * (0.003 if row.axes["strategy"] == "kmeans" else 0)})
        for row in ROWS
    ]  # fmt: skip
    where = {"lr": "0.1"}
    made = table(rows, columns="client_acc", rows="strategy", by="shift,alpha", where=where)
    assert [[cell.best for cell in line] for line in made.cells] == [[False] * 4, [True] * 4]
    assert (
        "Bold: better than each other row of the same shift, alpha (paired t-test" in made.caption
    )
    wilcoxon = chosen(
        Choice(columns="client_acc", by="shift", where=where, test="wilcoxon"), rows, AXES
    ).table
    assert "No row is better" in wilcoxon.caption
    assert "Wilcoxon" in wilcoxon.caption


def test_a_caption_says_of_no_test_that_there_was_none():
    """Two seeds are not tested, and a row that is alone has nothing to be better than."""
    words = {"columns": "client_acc", "where": {"lr": "0.1", "shift": "none", "alpha": "1"}}
    assert "No row is better than each other row (paired t-test" in table(**words).caption
    two = table(seeds="0-1", **words).caption
    assert "No row is tested against others: that takes 3 seeds of each." in two
    words["where"]["strategy"] = "fedavg"
    assert table(**words).caption.endswith("Mean ± standard deviation over the seeds.")


def test_a_metric_that_was_asked_for_is_in_the_short_table():
    """Of the three that ``metrics=[macro_f1]`` gives, those that rows are compared by."""
    extra = {"client_macro_f1": 0.6, "macro_f1": 0.5, "client_test_macro_f1": 0.4, "ami": 0.3}
    rows = [TrialRow(row.axes, row.metrics | extra) for row in ROWS]
    headings = [column.name for column in layout(results_table(rows, axes=AXES), Choice()).columns]
    assert {"client_macro_f1", "macro_f1"} <= {*headings}
    assert not {"client_test_macro_f1", "ami"} & {*headings}


def test_trials_are_picked_by_settings_that_are_no_axes_and_by_seeds():
    made = chosen(
        Choice(where={"dataset": "digits", "num_clients": "20"}, seeds="1-2"), ROWS, AXES, SETTINGS
    )
    assert len(made.rows) == 32
    assert {row.axes["seed"] for row in made.rows} == {"1", "2"}


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"where": {"shift": "noise"}}, "no trial is left of shift=noise; there is shift=none,"),
        ({"where": {"shfit": "none"}}, "--where: shfit is no setting .* did you mean shift"),
        ({"rows": "strategi"}, "--rows: unknown axis 'strategi'. Did you mean 'strategy'"),
        ({"columns": "client_ac"}, "--columns: unknown metric 'client_ac'. Did you mean"),
        ({"seeds": "7"}, "no trial is left of --seeds 7; there is seed=0,1,2"),
        ({"rows": "strategy", "by": "strategy"}, "both name strategy"),
        ({"sort": "ari", "columns": "client_acc"}, "--sort ari: name it in --columns too"),
        ({"best": "lr", "rows": "training.lr"}, "--rows names training.lr, of which --best"),
        ({"best": "seed"}, "--best: unknown axis 'seed'"),
        ({"best": "lr", "best_seeds": "0-2"}, "no trial is left of other seeds"),
        ({"best": "lr", "best_seeds": "0,7"}, "no trial is of the seed 7 .* there is seed=0,1,2"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_refused(words, error):
    with pytest.raises(RunnerError, match=error):
        table(**words)


@pytest.mark.parametrize(
    "words",
    [{"best_by": "acc"}, {"best_by": "client_test_acc"}, {"pictures": "gif"}, {"width": "3"},
     {"width": "0.5in"}, {"seeds": "4-0"}, {"decimals": {"all": -1}}, {"spread": "some"},
     {"colums": "acc"}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(words):
    with pytest.raises(ValidationError):
        Choice(**words)


def test_widths_have_units():
    assert inches("3.25in") == 3.25
    assert inches("254 mm") == pytest.approx(10)
    assert inches("72.27pt") == pytest.approx(1)


def test_rows_are_sorted_by_a_value_the_best_first():
    words = {"columns": "client_acc,wall_s", "where": {"shift": "none", "lr": "0.1"}}
    made = table(sort="client_acc", **words)
    assert [label[:2] for label in made.labels] == [
        ("1.0", "K-means"), ("0.1", "K-means"), ("1.0", "FedAvg"), ("0.1", "FedAvg")
    ]  # fmt: skip


def test_a_table_without_a_column_for_it_says_how_many_trials_failed():
    """Else a mean over two seeds stands beside one over three, and nothing tells."""
    rows = [TrialRow(row.axes, {}) if i in (0, 7) else row for i, row in enumerate(ROWS)]
    told = "2 of 48 trials failed or have yet to end, and are in no mean."
    assert told in table(rows, columns="client_acc").caption
    assert told not in table(rows, columns="client_acc,failed").caption
    assert "in no mean" not in table(columns="client_acc").caption


def test_values_that_no_trial_has_are_said():
    """Of a misspelt one beside others nothing else would tell."""
    words = {"where": {"strategy": "fedavg,kmean", "alpha": "1"}, "seeds": "1-4"}
    assert table(**words).remarks == ("no trial has strategy=kmean", "no trial has seed=3,4")
    assert table(where={"strategy": "fedavg", "alpha": "1.0"}, seeds="1").remarks == ()


def test_names_decimals_and_spreads_are_as_given():
    made = table(
        columns="client_acc", rows="strategy", where={"shift": "none", "alpha": "1", "lr": "0.1"},
        labels={"strategy": "Method", "kmeans": "Ours", "client_acc": "acc."},
        decimals={"client_acc": 3}, spread="interval", caption="The caption",
    )  # fmt: skip
    half = 4.302653 * 1 / math.sqrt(3)
    assert plain(made.lines()) == [
        ["Method", "acc."], ["FedAvg", f"92.000 ± {half:.3f}"], ["Ours", f"97.000 ± {half:.3f}"]
    ]  # fmt: skip
    assert made.caption.startswith("The caption. ")
    assert "half the width of its 95% confidence interval (Student's t)" in made.caption


def test_a_table_has_its_numbers_unrounded():
    frame = table(
        columns="client_acc", rows="strategy", by="shift", where={"alpha": "1", "lr": "0.1"}
    ).frame()
    assert frame.loc["K-means", "rotation: client accuracy (%)"] == pytest.approx(0.67)


def test_the_best_value_is_chosen_on_held_out_data():
    made = table(
        columns="client_acc,acc", best="lr", rows="strategy", by="alpha", where={"shift": "none"}
    )
    assert [column.name for column in made.columns] == ["client_acc", "acc", "training.lr"] * 2
    assert [line[2].text for line in made.cells] == ["0.1", "0.1"]  # acc alone would take .01
    assert [line[1].mean for line in made.cells] == pytest.approx([0.6, 0.6])
    assert (
        "lr: in each row the best of up to 2 values, by the mean client accuracy on what the "
        in (made.caption)
    )
    assert "flattered" in made.caption


def test_seeds_to_choose_on_are_not_those_that_are_shown():
    def row(rate, seed, value):
        return TrialRow({"training.lr": rate, "seed": seed}, {"client_acc": value})

    values = {"0.1": (0.9, 0.1, 0.1), "1": (0.8, 0.7, 0.6)}
    rows = [row(rate, str(i), value) for rate, of in values.items() for i, value in enumerate(of)]
    found = tuned(rows, "training.lr", "lr", "client_acc", ("0",))
    assert (found.chosen, found.kept) == ({(): "0.1"}, (1, 2))
    assert tuned(rows, "training.lr", "lr", "client_acc").chosen == {(): "1"}
    lost = [*rows[:3], row("1", "0", math.nan), *rows[4:]]
    assert tuned(lost, "training.lr", "lr", "client_acc").chosen == {(): "0.1"}
    failed = [*rows[:3], TrialRow(rows[3].axes, {}), *rows[4:]]
    assert tuned(failed, "training.lr", "lr", "client_acc").chosen == {(): "0.1"}


def test_the_chosen_value_has_a_column_in_each_condition_whoever_chose_the_others():
    made = table(best="lr", rows="strategy", by="shift,alpha")
    assert [column.name for column in made.columns] == ["client_acc", "training.lr"] * 4
    assert {line[1].text for line in made.cells} == {"0.1"}


def test_a_row_that_has_nothing_to_choose_by_is_said():
    """Its only seed to choose on failed: the first value is there, and was not chosen."""
    rows = [
        TrialRow(row.axes, {}) if row.axes["strategy"] + row.axes["seed"] == "kmeans0" else row
        for row in ROWS
    ]
    made = table(rows, best="lr", best_seeds="0", columns="client_acc", where={"alpha": "1"})
    assert [line[1].text for line in made.cells] == ["0.1", "0.01", "0.1", "0.01"]
    assert "In 2 of 4 rows no trial has it: the first value stands there." in made.caption
    whole = table(best="lr", best_seeds="0", columns="client_acc", where={"alpha": "1"})
    assert "no trial has it" not in whole.caption


def test_a_value_without_a_trial_to_choose_by_comes_behind_one_that_has_some():
    def row(rate, seed, **metrics):
        return TrialRow({"training.lr": rate, "seed": seed}, metrics)

    rows = [row("0.1", "2", client_acc=0.1), row("1", "0", client_acc=0.9), row("1", "1")]
    found = tuned(
        [*rows, row("1", "2", client_acc=0.9)], "training.lr", "lr", "client_acc", ("0", "1")
    )
    assert found.chosen == {(): "1"}


def test_latex_numbers_stand_in_columns_of_their_width():
    rows = [
        TrialRow({"strategy": name, "seed": str(seed)}, {"client_acc": value})
        for name, values in {
            "a_b": (0.05, 0.052, 0.051), "kmeans": (0.6, 0.8, 0.91), "lost": (math.nan, 0.1, 0.2)
        }.items()
        for seed, value in enumerate(values)
    ]  # fmt: skip
    made = chosen(Choice(columns="client_acc,trials"), rows, ("strategy", "seed")).table
    text = latex(made, "my sweep")
    assert r"\begin{tabular}{l S[table-format=2.1(3)] r}" in text
    assert r"a\_b & 5.1 \pm 0.1 & 3 \\" in text
    assert r"K-means & 77.0 \pm 15.7 & 3 \\" in text
    assert r"lost & {nan (1 of 3)} & 3 \\" in text
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1] * 3
    assert r"p $<$ 0.05, corrected" in text


def test_latex_marks_a_best_cell_that_has_more_to_say():
    rows = [
        TrialRow(
            {"strategy": name, "seed": str(seed)},
            {
                "acc": 0.5,
                **({"client_acc": mean + seed**2 * mean / 1e4} if seed or mean < 0.9 else {}),
            },
        )
        for name, mean in {"fedavg": 0.5, "ours": 0.9}.items()
        for seed in range(5)
    ]
    made = chosen(Choice(columns="client_acc"), rows, ("strategy", "seed")).table
    assert "| ours | **90.1** ± 0.1 (4 of 5) |" in printed(made, "md", "")
    assert r"ours & {\textbf{90.1} $\pm$ 0.1 (4 of 5)} \\" in latex(made, "")


def test_latex_has_a_block_of_columns_for_each_condition():
    text = latex(
        table(
            columns="client_acc,acc", rows="strategy", by="shift", where={"lr": "0.1", "alpha": "1"}
        ),
        "x",
    )
    head = text.splitlines()[text.splitlines().index(r"\toprule") + 1 :][:3]
    assert head == [
        r" & \multicolumn{2}{c}{no shift} & \multicolumn{2}{c}{rotation} \\",
        r"\cmidrule(lr){2-3} \cmidrule(lr){4-5}",
        r"strategy & {client accuracy (\%)} & {global accuracy (\%)} & {client accuracy (\%)} & "
        r"{global accuracy (\%)} \\",
    ]
    one = latex(
        table(columns="client_acc", rows="strategy", by="shift", where={"lr": "0.1", "alpha": "1"}),
        "x",
    )
    assert r"strategy & {no shift} & {rotation} \\" in one
    assert r". Client accuracy (\%). Mean" in one


def test_every_format_shows_the_same_cells():
    made = table(
        columns="client_acc", rows="strategy", by="shift", where={"lr": "0.1", "alpha": "1"}
    )
    for kind in ("md", "csv", "html"):
        text = printed(made, kind, "x")
        assert [text.count(told) for told in ("92.0 ± 1.0", "67.0 ± 1.0")] == [1, 1], kind
    assert r"67.0 \pm 1.0" in printed(made, "latex", "x")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_a_terminals_table_cuts_no_word_and_names_what_it_lacks(width):
    """Whatever the width: each number that is shown is whole, each column that is not is named."""
    cells = results_table(ROWS, axes=AXES)
    made = layout(cells, Choice())
    shown, lost = fitted(made, "results", width)
    file = io.StringIO()
    new_console(file=file, width=width).print(shown)
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    numbers = [cell for line in plain(made.lines())[1:] for cell in line if "±" in cell]
    kept = [column.heading for column in made.columns if column.heading not in lost]
    assert "client accuracy (%)" in kept  # the last to go
    for heading, *column in zip(*plain(made.lines()), strict=True):
        if heading not in lost:
            assert all(
                re.search(rf"(?<![^\s=]){re.escape(cell)}(?!\S)", text) for cell in column
            ), heading
    assert len(numbers) > 16
    if width == 160:
        assert lost == []
    if width == 80:
        assert lost[0] == "trials"


def test_a_sweep_ends_with_what_may_be_done_next(tmp_path):
    told = ending("mine", AXES, tmp_path, ["tracking.output=/a b"])
    assert told[0] == f"open {tmp_path / 'index.html'}"
    assert [line.split("  #")[0].strip() for line in told[1:]] == [
        "fedsweep report mine --rows strategy,num_clusters,lr --by shift,alpha --format latex "
        "'tracking.output=/a b'",
        "fedsweep best mine 'tracking.output=/a b'",
        "fedsweep ui 'tracking.output=/a b'",
    ]
    assert np.all([not line.startswith("open") for line in ending("mine", AXES, None, [])])
