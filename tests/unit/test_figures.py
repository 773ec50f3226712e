import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Tick
from matplotlib.figure import Figure

from fedsweep.figures import canvas, split, trial
from fedsweep.report import plots as sweep
from fedsweep.strategies import STRATEGIES

NAMES = [str(i) for i in range(10)]


def drawn(figure: Figure) -> Figure:
    assert canvas.to_png(figure, 110, canvas.new_layouts()).startswith(b"\x89PNG")
    return figure


def assignments(clients: int, rounds: int, clusters: int) -> pd.DataFrame:
    rows = [
        (r, i, i % clusters, i == i % clusters)
        for r in range(1, rounds + 1)
        for i in range(clients)
    ]
    return pd.DataFrame(rows, columns=["round", "client", "cluster", "server"])


def test_every_strategy_has_its_own_colour():
    names = sorted(STRATEGIES)
    assert len({canvas.strategy_colour(name) for name in names}) == len(names)
    foreign = [canvas.strategy_colour(f"my.module.Strategy{i}") for i in range(100)]
    assert len(set(foreign)) > 95
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in foreign)


@pytest.mark.parametrize(
    ("clients", "groups", "classes"), [(1, 1, 10), (20, 4, 10), (1000, 1, 10), (50, 4, 30)]
)
def test_pictures_of_a_split_are_drawn_for_few_and_many_clients(clients, groups, classes):
    counts = np.random.default_rng(0).integers(0, 50, (clients, classes))
    group, names = np.arange(clients) % groups, [f"class {i}" for i in range(classes)]
    drawn(split.label_heatmap(counts, group, names))
    drawn(split.label_bars(counts, group, names))
    drawn(split.class_counts(counts, names))


def test_heatmap_sorts_few_clients_by_group_and_writes_each_count():
    counts = np.array([[1, 2], [3, 4], [5, 6], [7, 8]])
    axes = drawn(split.label_heatmap(counts, np.array([0, 1, 0, 1]), ["a", "b"])).axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "2", "1", "3"]
    [numbers] = (artist for artist in axes.artists if isinstance(artist, canvas.labels_type()))
    assert numbers.texts == list("15372648")  # row by row
    assert axes.get_xlabel() == "client, sorted by group"


def test_bars_reach_each_clients_number_of_examples():
    counts = np.array([[3, 4], [10, 1]])
    axes = split.label_bars(counts, np.zeros(2, int), ["a", "b"]).axes[0]
    last = np.concatenate([path.vertices for path in axes.collections[1].get_paths()])
    assert {float(y) for y in last[:, 1]} == {3.0, 7.0, 10.0, 11.0}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 16])
def test_example_grid_takes_grey_and_colour(channels, count):
    images = np.full((count, channels, 8, 8), 7, np.uint8)
    axes = drawn(split.example_grid(images, np.zeros(count, int), NAMES)).axes[0]
    assert (axes.images[0].get_array()[:8, :8] == 7).all()
    [captions] = (artist for artist in axes.artists if isinstance(artist, canvas.labels_type()))
    assert captions.texts == ["0"] * count


def test_cluster_map_holds_each_clients_cluster_and_marks_servers():
    axes = drawn(trial.cluster_map(assignments(4, 3, 2), {0: 0, 1: 1, 2: 0, 3: 1})).axes[0]
    assert axes.images[0].get_array().tolist() == [[0, 0, 0], [0, 0, 0], [1, 1, 1], [1, 1, 1]]
    assert axes.lines[0].get_xdata().tolist() == [1, 1, 2, 2, 3, 3]
    assert axes.lines[0].get_ydata().tolist() == [
        0,
        2,
        0,
        2,
        0,
        2,
    ]  # clients 0 and 1, in rows 0 and 2


def test_cluster_map_leaves_a_gap_where_nothing_is_known():
    table = assignments(2, 3, 2)
    axes = trial.cluster_map(table[table["round"] != 2]).axes[0]
    assert np.ma.masked_invalid(axes.images[0].get_array()).mask[:, 1].all()


def test_cluster_map_of_a_thousand_clients():
    drawn(trial.cluster_map(assignments(1000, 5, 20)))


@pytest.mark.parametrize("hosts", [1, 9])
def test_load_plot_averages_what_several_hosts_say_about_one_node(hosts):
    rows = [
        (100.0 + t, f"h{h}", "n", 50.0, 10.0, 20.0 * h, 40.0)
        for t in range(3)
        for h in range(hosts)
    ]
    columns = ["time_s", "host", "node", "host_cpu", "host_rss_mb", "node_cpu", "node_mem"]
    figure = drawn(trial.load_plot(pd.DataFrame(rows, columns=columns)))
    assert figure.axes[1].lines[0].get_ydata().tolist() == [10.0 * (hosts - 1)] * 3


def test_curves_skip_rounds_without_evaluation_and_scale_to_per_cent():
    metrics = pd.DataFrame(
        {
            "round": [0, 1, 2],
            "1_global/acc": [0.1, np.nan, 0.5],
            "2_clusters/c0_acc": [np.nan, 0.2, 0.3],
        }
    )
    clients = pd.DataFrame(
        {"round": [2, 2, 2], "eval_acc": [0.1, 0.2, 0.3], "eval_loss": [1.0, 2.0, 3.0]}
    )
    lines = {line.get_label(): line for line in drawn(trial.curves(metrics, clients)).axes[0].lines}
    assert lines["global model"].get_ydata().tolist() == [10.0, 50.0]
    assert lines["cluster 0"].get_xdata().tolist() == [1, 2]
    assert lines["clients: median, 10-90%"].get_ydata().tolist() == [20.0]


def test_a_clients_loss_that_is_no_number_leaves_a_gap():
    """Quantiles would leave it out. Client 1 holds out nothing: it leaves none."""
    nan = float("nan")
    clients = pd.DataFrame(
        [(1, 0.5, 1.0), (1, 0.7, 3.0), (1, nan, nan), (2, 0.5, nan), (2, 0.7, 3.0), (3, 0.5, 1.0)],
        columns=["round", "eval_acc", "eval_loss"],
    )
    axes = drawn(trial.curves(pd.DataFrame({"round": [1, 2, 3]}), clients)).axes
    acc, loss = (ax.lines[0].get_ydata().tolist() for ax in axes[:2])
    assert acc == pytest.approx([60, 60, 50])
    assert loss == pytest.approx([2, nan, 1], nan_ok=True)


def test_curves_without_any_evaluation():
    drawn(trial.curves(pd.DataFrame({"round": [1], "4_comm/mb": [1.0]})))


def test_confusion_matrix_is_in_per_cent_of_the_true_class():
    axes = drawn(trial.confusion_matrix(np.array([[3, 1], [0, 0]]), ["a", "b"])).axes[0]
    assert axes.images[0].get_array().tolist() == [[75.0, 25.0], [0.0, 0.0]]


def test_axis_effect_draws_means_over_seeds_at_even_steps():
    rows = pd.DataFrame({"k": [1, 1, 4, 4], "p": ["iid"] * 4, "acc": [0.2, 0.4, 0.5, 0.7]})
    axes = drawn(sweep.axis_effect(rows, "k", "acc", "p")).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 1]
    assert axes.lines[0].get_ydata() == pytest.approx([30, 60])


def curve_table(losses: dict[int, list[float]]) -> pd.DataFrame:
    """Rows of one line, by trial: nan is a value that was logged."""
    rows = [
        {
            "trial": i,
            "panel": "p",
            "line": "a",
            "round": r,
            "mb": 2.0 * r,
            "loss": loss,
            "loss_nan": np.isnan(loss),
        }
        for i, values in losses.items()
        for r, loss in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_a_seed_that_diverged_breaks_the_curve_of_its_line():
    """As in the tables, where the mean is nan;
    the mean of the others would look like that of all.
    """
    nan = float("nan")
    axes = drawn(
        sweep.over(curve_table({0: [1, 2, nan, 4], 1: [3, 4, 5, 6]}), "round", "loss", "loss")
    ).axes[0]
    assert axes.lines[0].get_xdata().tolist() == [0, 1, 2, 3]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([2, 3, nan, 5], nan_ok=True)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a (1 diverged of 2)"]


def test_a_seed_that_diverged_and_ended_takes_no_part_in_what_follows():
    nan = float("nan")
    table = curve_table({0: [1, 2, nan], 1: [3, 4, 5, 6, 7], 2: [5, 6, 7, 8]})
    axes = drawn(sweep.over(table, "round", "loss", "loss")).axes[0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([3, 4, nan, nan, nan], nan_ok=True)
    [entry] = axes.get_legend().get_texts()
    assert entry.get_text() == "a (1 diverged, 2 ended early of 3)"
    over_mb = sweep.over(table, "mb", "loss", "loss").axes[0].lines[0]
    x, y = over_mb.get_xdata(), over_mb.get_ydata()
    assert np.isnan(y[x > 2]).all()
    assert y[x <= 2] == pytest.approx(3 + x[x <= 2] / 2)


def test_a_seed_that_ended_early_is_told():
    axes = drawn(sweep.over(curve_table({0: [1, 2], 1: [3, 4, 5]}), "round", "loss", "loss")).axes[
        0
    ]
    assert axes.lines[0].get_ydata().tolist() == [2, 3, 5]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a (1 ended early of 2)"]


def test_markers_over_traffic_stand_at_rounds_that_were_evaluated():
    """Of rounds 0, 1, 2 at 0, 2, 4 MB, in a line of sixty points between: no more markers."""
    table = curve_table({0: [1, 2, 4], 1: [3, 4, 5]})
    line = sweep.over(table, "mb", "loss", "loss").axes[0].lines[0]
    places = line.get_xdata()[line.get_markevery()]
    assert len(line.get_xdata()) == 60
    assert places == pytest.approx([0, 2, 4], abs=4 / 59 / 2)


def test_axis_effect_has_a_gap_where_a_seed_has_no_number():
    rows = pd.DataFrame({"k": [1, 1, 4, 4], "p": ["iid"] * 4, "acc": [0.2, float("nan"), 0.5, 0.7]})
    axes = drawn(sweep.axis_effect(rows, "k", "acc", "p")).axes[0]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([float("nan"), 60], nan_ok=True)


def test_figures_of_one_kind_share_their_layout_and_others_do_not():
    layouts = canvas.new_layouts()

    def places(first: str, names: list[str]) -> list[list[float]]:
        figure = split.class_counts(np.array([[1, 2]]), names, first)
        canvas.to_png(figure, 110, layouts)
        return [axes.get_position().bounds for axes in figure.axes]

    short, again, long = (
        places("a", ["x", "y"]),
        places("b", ["z", "w"]),
        places("a", ["aeroplane", "automobile"]),
    )
    assert short == again
    assert long[0][1] > short[0][1] + 0.05  # names that are turned take more room below


def test_a_picture_is_that_of_savefig_where_its_layout_is_its_own():
    counts = np.arange(30).reshape(3, 10)
    ours, theirs = (
        split.label_heatmap(counts, np.zeros(3, int), NAMES, "only here") for _ in range(2)
    )
    buffer = io.BytesIO()
    theirs.savefig(buffer, format="png", dpi=110, pil_kwargs={"compress_level": 3})
    assert canvas.to_png(ours, 110, canvas.new_layouts()) == buffer.getvalue()


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_texts_of_an_image_are_drawn_as_matplotlib_draws_each(kind):
    """Numbers, letters below the line, none at all, a colour: the same pixels, the same SVG."""
    texts, colours = ["7", "gyp", "", "$1", "100"], ["white", "black", "black", "#D55E00", "white"]
    places = np.array([[0, 0], [1, 0.5], [0.5, 1], [0, 1], [1, 1.2]])

    def figure() -> tuple[Figure, Axes]:
        made, (axes,) = canvas.new_figure(3, 2, "texts")
        axes.imshow(np.eye(2), cmap="cividis")
        return made, axes

    def bytes_of(made: Figure) -> bytes:
        buffer = io.BytesIO()
        with rc_context({"svg.hashsalt": "same"}):
            made.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
        return re.sub(rb'<g id="text_[0-9]+">|</g>|\s+', b"", buffer.getvalue())

    ours, axes = figure()
    canvas.write_in(axes, texts, places, colours)
    theirs, axes = figure()
    for text, place, colour in zip(texts, places, colours, strict=True):
        axes.text(
            *place, text, ha="center", va="center", fontsize=7, color=colour, in_layout=False,
            parse_math=False,
        )  # fmt: skip
    assert bytes_of(ours) == bytes_of(theirs)


def test_ticks_that_are_copied_are_drawn_as_those_that_are_made(monkeypatch):
    """Grids, shared axes, turned names, an axis of powers: the same pixels."""

    def pictures() -> list[bytes]:
        powers, (axes,) = canvas.new_figure(3, 2, "powers")
        axes.plot([1, 10, 1000], [3, 2, 1])
        axes.set_xscale("log")
        axes.tick_params(axis="x", which="both", labelrotation=45)
        load = pd.DataFrame(
            [(t, f"cpu-{t % 2}", "n", 9.0 * t, 650.0, 90.0, 50.0) for t in range(9)],
            columns=["time_s", "host", "node", "host_cpu", "host_rss_mb", "node_cpu", "node_mem"],
        )
        counts, names = np.arange(60).reshape(6, 10), [f"class number {i}" for i in range(10)]
        rounds = pd.DataFrame(
            {"round": range(12), "1_global/acc": np.arange(12) / 12, "1_global/loss": 1.0}
        )
        figures = (
            powers, trial.load_plot(load), trial.curves(rounds), split.class_counts(counts, names),
            split.label_heatmap(counts, np.arange(6) % 2, names),
            split.divergences(counts, np.arange(6) % 2, "divergences"),
            trial.confusion_matrix(np.eye(10, dtype=int), names),
        )  # fmt: skip
        return [canvas.to_png(figure, 80, canvas.new_layouts()) for figure in figures]

    copied = pictures()
    monkeypatch.setattr(canvas, "_ticks_by_copy", lambda axes: None)
    made = pictures()
    assert [a == b for a, b in zip(copied, made, strict=True)] == [True] * len(made)


def test_a_heatmap_has_one_artist_for_its_numbers_and_copies_its_ticks(monkeypatch):
    """What is counted, not timed: ticks that matplotlib makes, texts among an image's numbers."""
    making, plain = [], Tick.__init__
    monkeypatch.setattr(Tick, "__init__", lambda *a, **k: making.append(1) or plain(*a, **k))
    figure = drawn(split.label_heatmap(np.ones((20, 10), int), np.zeros(20, int), NAMES))
    assert len(making) <= 8  # of 38 major ones: the first of each axis, major and minor
    assert len(figure.axes[0].texts) == 0


def test_long_titles_are_wrapped_and_flat_lines_stay_below_the_frame():
    figure, _ = canvas.new_figure(
        4.5, 3, "mean client accuracy (%) over client traffic: mean and deviation over seeds"
    )
    assert figure.get_suptitle().count("\n") == 1
    columns = ["time_s", "host", "node", "host_cpu", "host_rss_mb", "node_cpu", "node_mem"]
    load = pd.DataFrame(
        [(t, "cpu-0", "n", 9.0, 650.0, 90.0, 50.0) for t in range(5)], columns=columns
    )
    assert trial.load_plot(load).axes[2].get_ylim() == (0.0, pytest.approx(715.0))


def test_long_names_are_folded_between_words_and_behind_underscores() -> None:
    _, [axes] = canvas.new_figure(2, 2, "")
    names = ["synthetic_groups", "centered_clipping, no defence"]
    canvas.folded_ticks(axes.xaxis, names, 2 * 10.5 * 0.055)  # ten letters for each
    shown = axes.xaxis.get_major_formatter().seq
    assert shown == ["synthetic_\ngroups", "centered_\nclipping,\nno defence"]
