"""Figures that compare ways over the conditions of a sweep: bars, heat maps, wins, ranks.

Pure functions of a table with a row per trial: ``panel`` (the problem), ``line`` (the way),
``seed`` and ``value``.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsweep.catalog import Metric
from fedsweep.figures.canvas import (
    SCREEN,
    Page,
    colorbar,
    folded_ticks,
    legend,
    legend_below,
    new_figure,
)
from fedsweep.report.plots import Looks
from fedsweep.report.stats import (
    LEAST,
    LEVEL,
    Test,
    critical_difference,
    friedman,
    interval,
    mean_ranks,
    p_different,
    rejected,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MANY = 5
"""Conditions from which on mean ranks are compared."""
_NAMES = 1.1  # inches that the name of a way may take


def bars(trials: "pd.DataFrame", metric: Metric, looks: Looks, page: Page = SCREEN) -> "Figure":
    """Show a metric's means as bars, a group per condition, with 95% intervals over the seeds.

    A dot is a trial; of fewer than three there is no interval. A bar lacks where one diverged.
    """
    panels, lines = _orders(trials)
    width = page.width or float(np.clip(2.2 + 0.28 * len(panels) * (len(lines) + 1), 4.5, 14))
    title = f"{metric.axis_label}: mean and 95% interval over seeds"
    high = 0.75 * page.width if page.width else 3.6
    figure, (ax,) = new_figure(width, high, "" if page.width else title)
    entries: dict[str, Any] = {}  # bars come in containers
    seen = [*trials["value"].dropna() * metric.factor]  # what the axis has to hold
    each = 0.8 / len(lines)
    for i, line in enumerate(lines):
        look = looks[line]
        for x, panel in enumerate(panels):
            values = _values(trials, panel, line) * metric.factor
            if not len(values):
                continue
            at = x - 0.4 + (i + 0.5) * each
            if np.isnan(values).any():
                ax.text(
                    at, 0.02, "nan", ha="center", va="bottom", fontsize=6,
                    transform=ax.get_xaxis_transform(),
                )  # fmt: skip
                continue
            drawn = ax.bar(
                at, values.mean(), each * 0.92, color=look.colour, alpha=0.75, edgecolor="black",
                linewidth=0.4, hatch=_HATCHES[i % len(_HATCHES)],
            )  # fmt: skip
            entries.setdefault(line, drawn)
            half = interval(values)
            if not np.isnan(half):
                ax.errorbar(at, values.mean(), half, color="black", lw=0.9, capsize=2)
                seen += [values.mean() - half, values.mean() + half]
            ax.plot(
                [at] * len(values), values, look.marker, color="white", mec="black", mew=0.4,
                ms=2.6, ls="none",
            )  # fmt: skip
    folded_ticks(ax.xaxis, panels, 0.8 * width)
    ax.set_ylabel(metric.axis_label, fontsize=8)
    ax.grid(axis="y", alpha=0.25)
    _make_room(ax, seen)
    if page.width:
        legend_below(figure, entries)
    else:
        legend(ax, entries)
    return figure


_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")


def _make_room(ax: "Axes", seen: Sequence[float]) -> None:
    """Begin the axis where differences can be seen: bars of a share need not begin at 0."""
    low, high = float(min(seen)), float(max(seen))
    room = 0.15 * (high - low or abs(high) or 1.0)
    ax.set_ylim(0 if 0 <= low < 0.5 * high else low - room, high + room)


def heat_map(trials: "pd.DataFrame", metric: Metric, page: Page = SCREEN) -> "Figure":
    """Show a metric's means as colours: a row per way, a column per condition."""
    panels, lines = _orders(trials)
    means = np.array([[_mean(trials, panel, line) for panel in panels] for line in lines])
    there = [[len(_values(trials, panel, line)) for panel in panels] for line in lines]
    means *= metric.factor
    wide = page.width or 2.6 + 0.75 * len(panels)
    high = 1.3 + 0.3 * len(lines)
    title = f"{metric.axis_label}: mean over seeds"
    figure, (ax,) = new_figure(wide, high, "" if page.width else title)
    image = ax.imshow(means, aspect="auto", cmap="cividis", interpolation="nearest")
    low, high_ = np.nanmin(means), np.nanmax(means)
    for y, x in np.ndindex(means.shape):
        value = means[y, x]
        lost = "nan" if there[y][x] else "-"  # diverged, or not there
        told = lost if np.isnan(value) else f"{value:.{metric.decimals}f}"
        bright = not np.isnan(value) and value > (low + high_) / 2
        ax.text(
            x, y, told, ha="center", va="center", fontsize=7, color="black" if bright else "white",
            in_layout=False,
        )  # fmt: skip
    ax.set_facecolor("#888888")
    folded_ticks(ax.xaxis, panels, 0.55 * wide)
    folded_ticks(ax.yaxis, lines, _NAMES * len(lines))
    colorbar(figure, ax, image, metric.axis_label)
    return figure


def paired_wins(
    trials: "pd.DataFrame", metric: Metric, test: Test, page: Page = SCREEN
) -> "Figure":
    """Show in how many conditions the way of a row is better than the way of a column.

    "Better" is a paired test over the seeds that both have, all pairs of a condition corrected
    together by Holm. In brackets: conditions in which its mean is better.
    """
    panels, lines = _orders(trials)
    clear, leads = wins(trials, metric, test)
    wide = page.width or 2.4 + 0.62 * len(lines)
    figure, (ax,) = new_figure(
        wide,
        1.5 + 0.36 * len(lines),
        ""
        if page.width
        else f"{metric.axis_label}: conditions won, of {len(panels)} "
        f"({'t-test' if test == 't' else 'Wilcoxon'}, p < {LEVEL} by Holm; in brackets: "
        "better means)",
    )
    image = ax.imshow(clear, aspect="auto", cmap="cividis", vmin=0, vmax=max(1, len(panels)))
    for y, x in np.ndindex(clear.shape):
        if y != x:
            colour = "black" if clear[y, x] > len(panels) / 2 else "white"
            ax.text(
                x, y, f"{clear[y, x]} ({leads[y, x]})", ha="center", va="center", fontsize=7,
                color=colour, in_layout=False,
            )  # fmt: skip
    folded_ticks(ax.xaxis, lines, 0.55 * wide)
    folded_ticks(ax.yaxis, lines, _NAMES * len(lines))
    ax.set_xlabel("... than", fontsize=8)
    ax.set_ylabel("better ...", fontsize=8)
    colorbar(figure, ax, image, "conditions")
    return figure


def wins(trials: "pd.DataFrame", metric: Metric, test: Test) -> tuple["np.ndarray", "np.ndarray"]:
    """Return in how many conditions a way (row) is clearly better than another one (column), and
    in how many its mean is: int, (ways, ways) each.
    """
    panels, lines = _orders(trials)
    clear = np.zeros((len(lines), len(lines)), int)
    leads = np.zeros_like(clear)
    pairs = [(i, j) for i in range(len(lines)) for j in range(i)]
    for panel in panels:
        seeds = [_by_seed(trials, panel, line, metric) for line in lines]
        gains, p_values = [], []
        for i, j in pairs:
            both = [seed for seed in seeds[i] if seed in seeds[j]]
            ours, theirs = [seeds[i][s] for s in both], [seeds[j][s] for s in both]
            gains.append(_gain(ours, theirs))
            p_values.append(p_different(ours, theirs, test) if len(both) >= LEAST else 1.0)
        for (i, j), gain, sure in zip(pairs, gains, rejected(p_values), strict=True):
            if gain:
                winner, loser = (i, j) if gain > 0 else (j, i)
                leads[winner, loser] += 1
                clear[winner, loser] += sure
    return clear, leads


def _gain(ours: Sequence[float], theirs: Sequence[float]) -> int:
    """Return 1 where ours are better in the mean, -1 where theirs are; what diverged is worse."""
    if not ours:
        return 0
    first, second = float(np.mean(ours)), float(np.mean(theirs))
    if np.isnan(first) or np.isnan(second):
        return int(np.isnan(second)) - int(np.isnan(first))
    return int(np.sign(first - second))


def ranks(trials: "pd.DataFrame", metric: Metric, looks: Looks, page: Page = SCREEN) -> "Figure":
    """Show the ways' mean ranks over the conditions, and the critical difference of Nemenyi's test.

    Ways whose bars meet are not shown to differ (p < 0.05). Source: Demsar 2006, JMLR 7:1-30.
    """
    panels, lines = _orders(trials)
    scores = metric.sign * np.array(
        [[_mean(trials, panel, line) for line in lines] for panel in panels]
    )
    mean = mean_ranks(scores)
    least = critical_difference(len(lines), len(panels))
    p = friedman(scores)
    order = np.argsort(mean)
    wide = page.width or 6.5
    high = 0.9 + 0.24 * len(lines)
    title = (
        f"{metric.axis_label}: mean rank over {len(panels)} conditions (1 is best); "
        f"Friedman p = {p:.2g}"
    )
    figure, (ax,) = new_figure(wide, high, "" if page.width else title)
    for y, i in enumerate(order):
        look = looks[lines[i]]
        ax.plot(mean[i], y, look.marker, color=look.colour, ms=6, mec="black", mew=0.4)
        ax.hlines(y, mean[i] - least / 2, mean[i] + least / 2, color=look.colour, lw=2, alpha=0.6)
    folded_ticks(ax.yaxis, [lines[i] for i in order], _NAMES * len(lines))
    ax.set_ylim(len(order) - 0.4, -0.6)
    ax.set_xlabel(
        f"mean rank; two differ where their bars do not meet (CD = {least:.2f}, "
        f"Friedman p = {p:.2g})",
        fontsize=7,
    )
    ax.grid(axis="x", alpha=0.25)
    return figure


def is_whole(trials: "pd.DataFrame") -> bool:
    """Return whether each way has a number in each condition: else ranks mean nothing."""
    panels, lines = _orders(trials)
    means = (_mean(trials, panel, line) for panel in panels for line in lines)
    return not any(np.isnan(value) for value in means)


def _orders(trials: "pd.DataFrame") -> tuple[list[str], list[str]]:
    return list(trials["panel"].unique()), list(trials["line"].unique())


def _values(trials: "pd.DataFrame", panel: str, line: str) -> "np.ndarray":
    part = trials[(trials["panel"] == panel) & (trials["line"] == line)]
    return part["value"].to_numpy(float)


def _mean(trials: "pd.DataFrame", panel: str, line: str) -> float:
    values = _values(trials, panel, line)
    return float(values.mean()) if len(values) else float("nan")


def _by_seed(trials: "pd.DataFrame", panel: str, line: str, metric: Metric) -> dict[object, float]:
    part = trials[(trials["panel"] == panel) & (trials["line"] == line)]
    return dict(zip(part["seed"], metric.sign * part["value"], strict=True))
