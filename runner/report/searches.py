"""Figures of searches: history, proposals, which settings matter, how sensitive methods are."""

from collections.abc import Sequence
from itertools import accumulate
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsweep.catalog import CATALOG, Metric
from fedsweep.config.section import short_names
from fedsweep.figures.canvas import (
    Extras,
    Page,
    colorbar,
    folded_ticks,
    legend,
    new_figure,
    strategy_colour,
)
from fedsweep.figures.style import method_marker
from fedsweep.report.searched import LR, Searched, Tuning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACROSS = 3  # panels side by side
_MOST = 24  # panels of a figure
_LABELS = 9  # letters of a value beside an axis


def search_figures(searched: Searched, pictures: Extras, page: Page) -> None:
    """Add the figures of a sweep's searches."""
    metric = CATALOG.final(searched.metric)
    shown = searched.first[:_MOST]
    if not shown:
        return
    pictures.publish("plots/search_history", lambda: history(shown, metric), page)
    several = [tuning for tuning in shown if len(tuning.space) > 1]
    if several:
        pictures.publish("plots/search_proposals", lambda: coordinates(several, metric), page)
    if any(tuning.importance for tuning in several):
        pictures.publish("plots/search_importance", lambda: importance(several), page)
    rated = [tuning for tuning in shown if LR in tuning.space]
    for i, (problem, of) in enumerate(_by_problem(rated).items()):
        name = "plots/search_learning_rate" + (f"_{i + 1}" if i else "")
        pictures.publish(name, lambda of=of, at=problem: sensitivity(of, metric, at), page)  # type: ignore[misc]


def _by_problem(tunings: Sequence[Tuning]) -> dict[str, list[Tuning]]:
    found: dict[str, list[Tuning]] = {}
    for tuning in tunings:
        found.setdefault(", ".join(value for _, value in tuning.problem), []).append(tuning)
    return found


def history(tunings: Sequence[Tuning], metric: Metric) -> "Figure":
    """Show each proposal's mean, in their order, and the best of those that ran all rounds."""
    figure, panels = _panels(tunings, f"{metric.axis_label}: proposals, and the best so far")
    for ax, tuning in zip(panels, tunings, strict=False):
        for complete, fill in ((True, "full"), (False, "none")):
            part = [(one.number, one.mean()) for one in tuning.tried if one.complete == complete]
            known = [(n, value * metric.factor) for n, value in part if value is not None]
            if known:
                ax.plot(*zip(*known, strict=True), "o", ms=4, fillstyle=fill, color="#0072B2")
        best = _best_so_far(tuning)
        if best:
            ax.step(
                *zip(*[(n, v * metric.factor) for n, v in best], strict=True),
                where="post", color="#D55E00",
            )  # fmt: skip
        ax.set_xlabel("proposal; hollow: stopped early", fontsize=8)
        ax.grid(alpha=0.25)
    return figure


def _best_so_far(tuning: Tuning) -> list[tuple[int, float]]:
    """Return the best mean of whole proposals up to each number, on the first replicates alone."""
    found: list[tuple[int, float]] = []
    whole = [one for one in tuning.tried if one.complete and one.mean() is not None]
    values = accumulate((one.mean() or 0.0 for one in whole), max)
    found += zip((one.number for one in whole), values, strict=True)
    return found


def coordinates(tunings: Sequence[Tuning], metric: Metric) -> "Figure":
    """Show each proposal as a line over its settings, coloured by its mean on the first rung."""
    figure, panels = _panels(tunings, f"Proposals by {metric.axis_label}")
    for ax, tuning in zip(panels, tunings, strict=False):
        scored = [
            (one, value)
            for one in tuning.tried
            if (value := one.mean(tuning.first_rung)) is not None
        ]
        if not scored:
            continue
        values = np.array([value for _, value in scored]) * metric.factor
        low, high = values.min(), values.max()
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        scale = Normalize(low, high if high > low else low + 1e-9)
        keys = list(tuning.space)
        names = short_names(keys)
        heights = {
            key: _heights([one.values[key] for one, _ in scored], key, tuning) for key in keys
        }
        for i in np.argsort(values):
            line = [heights[key][0][i] for key in keys]
            ax.plot(range(len(keys)), line, color=colormaps["cividis"](scale(values[i])), lw=1.2)
        for x, key in enumerate(keys):
            for y, text in heights[key][1]:
                ax.text(x, y, text, fontsize=6, ha="right", va="center", in_layout=False)
        folded_ticks(ax.xaxis, [names[key] for key in keys], 3.0)
        ax.set_yticks([])
        ax.set_xlim(-0.4, len(keys) - 0.7)
        colorbar(figure, ax, ScalarMappable(scale, "cividis"), metric.axis_label)
    return figure


def _heights(
    values: Sequence[Any], key: str, tuning: Tuning
) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where values stand on an axis from 0 to 1, and what is written beside it."""
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = np.array(values, float)
        log = tuning.space[key].startswith("log")
        scaled = np.log(numbers) if log else numbers
        low, high = scaled.min(), scaled.max()
        room = high - low or 1.0
        ends = [(0.0, f"{numbers.min():.3g}"), (1.0, f"{numbers.max():.3g}")]
        return list((scaled - low) / room), ends if high > low else ends[:1]
    options = sorted({str(value) for value in values})
    place = {name: i / max(1, len(options) - 1) for i, name in enumerate(options)}
    told = [(at, name[:_LABELS]) for name, at in place.items()]
    return [place[str(value)] for value in values], told


def importance(tunings: Sequence[Tuning]) -> "Figure":
    """Show the share of the proposals' variance that each setting explains (fANOVA)."""
    rows: list[tuple[str, float, str]] = []
    for tuning in tunings:
        names = short_names(tuning.space)
        for key, share in tuning.importance.items():
            rows.append((f"{tuning.label}: {names[key]}", share, tuning.place.get("strategy", "")))
    figure, (ax,) = new_figure(6.5, 0.9 + 0.22 * len(rows), "Which settings matter (fANOVA)")
    colours = [strategy_colour(method) if method else "#0072B2" for _, _, method in rows]
    ax.barh(range(len(rows)), [100 * share for _, share, _ in rows], color=colours)
    folded_ticks(ax.yaxis, [name for name, _, _ in rows], 0.9 * len(rows))
    ax.invert_yaxis()
    ax.set_xlabel("share of the variance of the scores (%)", fontsize=8)
    return figure


def sensitivity(tunings: Sequence[Tuning], metric: Metric, problem: str = "") -> "Figure":
    """Show what methods reach at each learning rate that was tried.

    A point is a proposal, whatever its other settings; the line is the best at about that rate, in
    quarters of a power of ten. All are compared on the first rung, which all of them ran.
    """
    rounds = ", ".join(str(n) for n in sorted({tuning.first_rung for tuning in tunings}))
    at = f", {problem}" if problem else ""
    title = f"{metric.axis_label} by learning rate, after {rounds} rounds{at}"
    figure, (ax,) = new_figure(6.5, 4.0, title)
    entries: dict[str, Any] = {}
    for tuning in tunings:
        points = [
            (float(one.values[LR]), value * metric.factor)
            for one in tuning.tried
            if (value := one.mean(tuning.first_rung)) is not None
        ]
        if not points:
            continue
        method = tuning.place.get("strategy", tuning.way)
        colour, marker = strategy_colour(method), method_marker(method)
        ax.plot(*zip(*points, strict=True), marker, color=colour, ms=4, alpha=0.5)
        best: dict[int, tuple[float, float]] = {}
        for lr, value in points:
            slot = round(4 * np.log10(lr))
            best[slot] = max(best.get(slot, (lr, value)), (lr, value), key=lambda point: point[1])
        line = [best[slot] for slot in sorted(best)]
        (entries[tuning.way],) = ax.plot(
            *zip(*line, strict=True), marker=marker, ms=4, color=colour
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda x, place: f"{x:g}")
    ax.set_xlabel("learning rate", fontsize=8)
    ax.set_ylabel(metric.axis_label, fontsize=8)
    ax.grid(alpha=0.25)
    legend(ax, entries)
    return figure


def _panels(tunings: Sequence[Tuning], title: str) -> "tuple[Figure, list[Axes]]":
    across = min(_ACROSS, len(tunings))
    down = ceil(len(tunings) / across)
    figure, panels = new_figure(3.4 * across + 0.8, 2.3 * down + 0.6, title, down, across)
    for ax, tuning in zip(panels, tunings, strict=False):
        ax.set_title(tuning.label, fontsize=8)
    for ax in panels[len(tunings) :]:
        ax.set_axis_off()
    return figure, panels
