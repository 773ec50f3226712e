"""Figures that compare ways: what they count, how ways look, that a page of a paper is kept."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fedsweep.catalog import CATALOG
from fedsweep.figures.canvas import Extras, Page, strategy_colour
from fedsweep.figures.style import MARKERS, method_marker, styles, way_of
from fedsweep.report import comparisons, stats
from fedsweep.report.plots import over
from fedsweep.strategies.registry import STRATEGIES

ACC = CATALOG.final("client_acc")
LOSS = CATALOG.final("server_regret")  # of which less is better


def trials(values):
    """Rows of (condition, way) -> the values of the seeds 0, 1, ..."""
    return pd.DataFrame([
        {"panel": panel, "line": line, "seed": seed, "value": value}
        for (panel, line), of in values.items()
        for seed, value in enumerate(of)
    ])  # fmt: skip


def test_wins_are_counted_by_the_paired_test_and_by_the_mean():
    table = trials({
        ("p", "a"): (0.90, 0.92, 0.91), ("p", "b"): (0.50, 0.53, 0.50),  # clear
        ("q", "a"): (0.50, 0.90, 0.10), ("q", "b"): (0.49, 0.10, 0.80),  # better in the mean alone
        ("r", "a"): (float("nan"), 0.9, 0.9), ("r", "b"): (0.1, 0.1, 0.1),  # what diverged is worse
    })  # fmt: skip
    clear, leads = comparisons.wins(table, ACC, "t")
    assert clear.tolist() == [[0, 1], [0, 0]]
    assert leads.tolist() == [[0, 2], [1, 0]]
    clear, leads = comparisons.wins(table[table["panel"] != "r"], LOSS, "t")
    assert (clear[1, 0], leads[1, 0]) == (1, 2)


def test_ranks_and_their_critical_difference():
    """Demsar 2006: q = 2.569 for four ways, so CD = 1.25 over 14 data sets; Friedman by hand."""
    assert stats.critical_difference(4, 14) == pytest.approx(1.25, abs=0.01)
    scores = np.array([[0.9, 0.8, 0.7], [0.6, 0.6, 0.1], [0.5, 0.4, 0.3], [0.9, 0.7, 0.8]])
    assert stats.mean_ranks(scores).tolist() == [1.125, 2.125, 2.75]
    assert stats.friedman(np.array([[3.0, 2.0, 1.0]] * 4)) == pytest.approx(np.exp(-4))  # chi2 = 8
    assert stats.friedman(np.ones((4, 3))) == 1


def test_holm_says_which():
    assert stats.rejected([0.03, 0.001, 0.5]) == [False, True, False]  # .03 > .05 / 2
    assert stats.rejected([0.02, 0.001, 0.5]) == [True, True, False]
    assert stats.rejected([]) == []


def test_a_method_looks_the_same_whichever_others_there_are():
    few = styles([(("strategy", "kmeans"),), (("strategy", "ditto"),)])
    many = styles([(("strategy", name),) for name in STRATEGIES])
    for way, style in few.items():
        assert many[way] == style
        assert style.colour == strategy_colour(dict(way)["strategy"])
    assert len({(style.colour, style.marker) for style in many.values()}) == len(STRATEGIES)


def test_settings_of_a_method_share_its_colour_and_differ_otherwise():
    ways = [(("strategy", "kmeans"), ("strategy.num_clusters", str(k))) for k in range(4)]
    found = styles([*ways, (("strategy", "fedavg"),)])
    looks = [found[way] for way in ways]
    assert {look.colour for look in looks} == {strategy_colour("kmeans")}
    assert len({(look.marker, look.dash) for look in looks}) == 4
    alone = styles(ways)  # of one method: colours are free for its settings
    assert len({look.colour for look in alone.values()}) == 4


def test_built_in_methods_of_like_colours_differ_in_marker():
    def lab(colour):
        from matplotlib.colors import to_rgb

        rgb = np.array(to_rgb(colour))
        rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
        xyz = np.array(to_xyz) @ rgb / np.array([0.9505, 1, 1.089])
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    names = [*STRATEGIES]
    for i, first in enumerate(names):
        for second in names[:i]:
            far = np.linalg.norm(lab(strategy_colour(first)) - lab(strategy_colour(second)))
            same = method_marker(first) == method_marker(second)
            assert far > 30 or not same, (first, second)
    assert {method_marker(name) for name in names} <= set(MARKERS)


def test_a_way_is_what_is_no_problem_and_no_seed():
    axes = {"partition.alpha": "1", "strategy": "kmeans", "seed": "0", "training.lr": "0.1"}
    assert way_of(axes) == (("strategy", "kmeans"), ("training.lr", "0.1"))


def curves():
    return pd.DataFrame([
        {"trial": t, "panel": f"problem {t % 2}", "line": f"way {t}", "round": r, "acc": r / 10,
         "acc_nan": False}
        for t in range(4)
        for r in range(5)
    ])  # fmt: skip


def test_figures_on_paper_have_its_width_in_each_format_and_the_same_bytes_twice():
    def drawn():
        pictures = Extras()
        page = Page(3.25, ("pdf", "svg", "png"))
        pictures.publish(
            "x", lambda: over(curves(), "round", "acc", "accuracy (%)", page=page), page
        )
        assert pictures.missing == {}
        return pictures.files

    files = drawn()
    assert set(files) == {"x.png", "x.pdf", "x.svg"}
    assert Image.open(io.BytesIO(files["x.png"])).size[0] == 975  # 300 dots an inch
    assert b"/MediaBox [ 0 0 234 " in files["x.pdf"]  # points
    assert b"/Type3" not in files["x.pdf"]  # which publishers refuse
    assert b'width="234pt"' in files["x.svg"]
    assert drawn() == files


@pytest.mark.parametrize(
    ("means", "from_zero"), [((0.10, 0.95), True), ((0.90, 0.95), False), ((0.0, 0.5), True)]
)
def test_bars_begin_at_zero_unless_that_hides_how_they_differ(means, from_zero):
    table = trials({("p", name): (mean,) * 3 for name, mean in zip("ab", means, strict=True)})
    looks = dict(zip("ab", styles([(("x", n),) for n in "ab"]).values(), strict=True))
    low, high = comparisons.bars(table, ACC, looks).axes[0].get_ylim()
    assert bool(low == 0) is from_zero
    assert low < 100 * max(means) + 1e-9 < high


def test_rows_and_columns_of_comparisons_have_room_for_a_number_and_not_much_more():
    def size(ways, draw):
        return np.array(draw(trials({("p", f"w{i}"): (0.1 * i,) * 3 for i in range(ways)})))

    def heat(table):
        return comparisons.heat_map(table, ACC).get_size_inches()

    def wins(table):
        return comparisons.paired_wins(table, ACC, "t").get_size_inches()

    for draw, columns in ((heat, 0), (wins, 10)):  # a heat map's columns are conditions: one here
        wide, high = size(12, draw) - size(2, draw)
        assert 0.2 <= high / 10 <= 0.5
        assert wide == 0 if not columns else 0.45 <= wide / columns <= 0.9


def test_a_heat_map_tells_what_diverged_from_what_is_not_there():
    table = trials({("p", "a"): (0.1, float("nan")), ("p", "b"): (0.5,), ("q", "b"): (0.7,)})
    told = [text.get_text() for text in comparisons.heat_map(table, ACC).axes[0].texts]
    assert told == ["nan", "-", "50.0", "70.0"]


@pytest.mark.parametrize("width", [0.0, 3.25])
def test_comparisons_draw_each_way_in_each_condition(width):
    names = ["fedavg", "kmeans", "a way with a name that is long"]
    table = trials({
        (f"problem {p} of a kind", name): tuple(0.1 * p + 0.2 * i + s / 50 for s in range(3))
        for p in range(6)
        for i, name in enumerate(names)
    })  # fmt: skip
    looks = dict(zip(names, styles([(("x", n),) for n in names]).values(), strict=True))
    page = Page(width)
    pictures = Extras()
    figure = comparisons.bars(table, ACC, looks, page)
    assert len(figure.axes[0].patches) == 18
    heights = sorted(round(bar.get_height(), 6) for bar in figure.axes[0].patches)
    assert heights[0] == pytest.approx(2)  # the mean of 0, 2 and 4 per cent
    low, high = figure.axes[0].get_ylim()
    ends = [y for bar in figure.axes[0].collections for line in bar.get_segments() for _, y in line]
    assert len(ends) == 36
    assert low < min(ends)  # no interval leaves the figure
    assert max(ends) < high
    heat = comparisons.heat_map(table, ACC, page)
    assert heat.axes[0].images[0].get_array().shape == (3, 6)
    ranks = comparisons.ranks(table, ACC, looks, page)
    assert sorted(line.get_xdata()[0] for line in ranks.axes[0].lines) == [1, 2, 3]
    won = comparisons.paired_wins(table, ACC, "t", page)
    for name, made in (("bars", figure), ("heat", heat), ("ranks", ranks), ("wins", won)):
        pictures.publish(name, lambda made=made: made, page)
    assert pictures.missing == {}
    assert len(pictures.files) == 4
