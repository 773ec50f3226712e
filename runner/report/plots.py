"""Figures over the trials of a sweep: lines are compared, panels are what they are compared on.

Pure functions of tables, as in :mod:`fedsweep.figures.trial`. A table of curves has a row per trial
and round: ``trial``, the labels ``line`` and ``panel``, ``round``, ``mb`` (client traffic so far)
and the values.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsweep.catalog import CATALOG
from fedsweep.figures.canvas import (
    SCREEN,
    Page,
    colorbar,
    distinct_colours,
    legend,
    legend_below,
    new_figure,
    ticks,
    whole_rounds,
)
from fedsweep.figures.style import Style, styles
from fedsweep.report.curves import ALONG

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLES = ("-", "--", "-.", ":")
_POINTS = 60  # where curves over megabytes are read off


Looks = Mapping[str, Style]
"""Line -> how it is drawn."""


def over(
    curves: "pd.DataFrame",
    x: str,
    value: str,
    label: str,
    factor: float = 1.0,
    title: str = "",
    looks: Looks | None = None,
    page: Page = SCREEN,
) -> "Figure":
    """Show a value, times a factor, over ``round`` or ``mb``: a line each, a panel each.

    Lines are means, bands deviations over seeds. Markers stand at rounds that were evaluated (some
    of them, where they are many).

    Where the value of a seed was NaN (``<value>_nan``) the mean is none, as in a report's tables:
    the line has a gap, and the legend says how many diverged, and how many ended before others.
    """
    curves = curves[(curves[value].notna() | curves[f"{value}_nan"]) & curves[x].notna()]
    figure, axes, panels, lines = panels_of(
        curves,
        title or f"{label.capitalize()} over {ALONG[x].title}: mean and deviation over seeds",
        looks,
        page,
    )
    entries: dict[str, Artist] = {}
    for ax, panel in zip(axes, panels, strict=False):
        for i, (line, look) in enumerate(lines.items()):
            part = curves[(curves["panel"] == panel) & (curves["line"] == line)]
            if part.empty:
                continue
            rows = _aligned(part, x, value) * factor
            whole = rows.loc[:, ~_lost(part, x, value, rows.columns)].reindex(columns=rows.columns)
            middle, spread = whole.mean(), whole.std(ddof=1 if len(rows) > 1 else 0).fillna(0)
            [drawn] = ax.plot(
                rows.columns, middle, look.dash, color=look.colour, lw=1.1 if page.width else 1.5,
                marker=look.marker, ms=3.2 if page.width else 4,
                markevery=_evaluated(part, x, rows.columns, i),
            )  # fmt: skip
            entries.setdefault(line + _lacking(curves[curves["line"] == line], value), drawn)
            ax.fill_between(
                rows.columns, middle - spread, middle + spread, color=look.colour, alpha=0.18, lw=0
            )
        ax.set_xlabel(ALONG[x].label)
        if x == "round":
            whole_rounds(ax)
    label_panels(figure, axes, panels, entries, label, page)
    return figure


def _evaluated(part: "pd.DataFrame", x: str, at: "pd.Index", line: int) -> list[int]:
    """Return which points have a marker: those nearest to some of the rounds there are."""
    places = part.groupby("round")[x].mean().to_numpy()
    nearest = np.unique(np.abs(np.subtract.outer(places, at.to_numpy())).argmin(axis=1))
    first, step = _some(len(nearest), line)
    return [int(i) for i in nearest[first::step]]


def _some(points: int, line: int) -> tuple[int, int]:
    """Return which points have a marker: the first, and step; lines have theirs at others."""
    step = max(1, points // 8)
    return line % step, step


def client_distributions(
    clients: "pd.DataFrame", title: str = "", looks: Looks | None = None, page: Page = SCREEN
) -> "Figure":
    """Show how the clients' final accuracies are spread;
    rows: ``line``, ``panel``, ``acc`` of a client and seed.
    """
    figure, axes, panels, lines = panels_of(
        clients, title or "Accuracy of the single clients, last round, all seeds", looks, page
    )
    entries: dict[str, Artist] = {}
    for ax, panel in zip(axes, panels, strict=False):
        for i, (line, look) in enumerate(lines.items()):
            part = clients[(clients["panel"] == panel) & (clients["line"] == line)]["acc"].dropna()
            if len(part):
                shares = np.arange(1, len(part) + 1) / len(part) * 100
                [entries[line]] = ax.step(
                    np.sort(part) * 100, shares, look.dash, where="post", color=look.colour,
                    lw=1.1 if page.width else 1.5, marker=look.marker,
                    ms=3.2 if page.width else 4, markevery=_some(len(part), i),
                )  # fmt: skip
        ax.set_xlabel("client accuracy (%)")
        ax.set_ylim(0, 101)
    label_panels(figure, axes, panels, entries, "clients at or below (%)", page)
    return figure


def embedding(points: "pd.DataFrame", title: str = "") -> "Figure":
    """Show clients as the clustering saw them, in two principal coordinates, by cluster and group.

    ``points`` has a row per client: ``x``, ``y``, ``cluster``, ``group``.
    """
    figure, axes = new_figure(
        8, 3.8, title or "Clients as the clustering saw them", columns=2, sharex=True, sharey=True
    )
    for ax, kind, name in zip(
        axes, ("cluster", "group"), ("cluster found", "true group"), strict=True
    ):
        numbers = sorted(points[kind].unique())
        entries: dict[str, Artist] = {}
        for i, (number, colour) in enumerate(
            zip(numbers, distinct_colours(len(numbers)), strict=True)
        ):
            part = points[points[kind] == number]
            [entries[str(number)]] = ax.plot(
                part["x"], part["y"], "osD^v<>P"[i % 8], color=colour, ms=6, alpha=0.8, mec="black",
                mew=0.4, linestyle="none",
            )  # fmt: skip
        ax.set_title(f"by {name}", fontsize=9)
        ax.set_xlabel("principal coordinate 1 (a. u.)")
        legend(ax, entries, outside=False, title=name, title_fontsize=7)
        ax.grid(alpha=0.25)
    axes[0].set_ylabel("principal coordinate 2 (a. u.)")
    return figure


def server_traces(
    assignments: "pd.DataFrame", clients: "pd.DataFrame | None", title: str = ""
) -> "Figure":
    """Show each cluster's servers, how long they served in a row, and what their tasks cost."""
    served = assignments[assignments["server"]]
    figure, axes = new_figure(7.5, 6, title or "Servers of the clusters", rows=3, sharex=True)
    clusters = sorted(served["cluster"].unique())
    entries: dict[str, Artist] = {}
    for i, (cluster, colour) in enumerate(
        zip(clusters, distinct_colours(len(clusters)), strict=True)
    ):
        part = served[served["cluster"] == cluster].sort_values("round")
        style: dict[str, Any] = {
            "color": colour,
            "ls": _STYLES[i % 4],
            "marker": "os^D"[i % 4],
            "ms": 4,
            "lw": 1.2,
        }
        [drawn] = axes[0].plot(part["round"], part["client"], drawstyle="steps-post", **style)
        entries[f"cluster {cluster}"] = drawn
        axes[1].plot(part["round"], part["tenure"], **style)
        if clients is not None:
            cost = part.merge(clients[["round", "client", "cpu_s"]], on=["round", "client"])
            axes[2].plot(cost["round"], cost["cpu_s"], **style)
    if clients is not None:
        everyone = clients.groupby("round")["cpu_s"].mean()
        [mean] = axes[2].plot(everyone.index, everyone, color="black", lw=1, ls=":")
        legend(axes[2], {"mean of all clients": mean}, outside=False)
    for ax, label in zip(
        axes, ("server (client)", "tenure (rounds)", "CPU time (s a round)"), strict=True
    ):
        ax.set_ylabel(label)
        ax.grid(alpha=0.25)
    legend(axes[0], entries)
    axes[2].set_xlabel("round")
    whole_rounds(axes[2])
    return figure


def label_distributions(splits: "Mapping[str, pd.DataFrame]", title: str = "") -> "Figure":
    """Show which classes each client holds, the partitionings side by side;
    of the split tables of the trials.
    """
    figure, axes = new_figure(
        1.2 + 3.0 * len(splits), 3.4, title or "Labels per client", columns=len(splits), sharey=True
    )
    shares = {}
    for name, split in splits.items():
        counts = split.sort_values(["group", "client"]).filter(like="class_")
        shares[name] = counts.div(counts.sum(axis=1).clip(lower=1), axis=0) * 100
    top = max(float(share.to_numpy().max()) for share in shares.values())
    for ax, (name, share) in zip(axes, shares.items(), strict=True):
        image = ax.imshow(
            share.T, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0, vmax=top
        )
        ax.set_title(name, fontsize=9)
        ax.set_xlabel("clients" + (", sorted by group" if splits[name]["group"].any() else ""))
        ax.set_xticks([])
    names = [column.removeprefix("class_") for column in next(iter(shares.values())).columns]
    ticks(axes[0].yaxis, names)
    axes[0].set_ylabel("class")
    colorbar(figure, axes, image, "share of the client's examples (%)")
    return figure


def axis_effect(
    rows: "pd.DataFrame",
    x: str,
    metric: str,
    line: str | None = None,
    panel: str | None = None,
    title: str = "",
    names: "Mapping[str, str] | None" = None,
) -> "Figure":
    """Show a metric against an axis: a line per value of another, a panel per value of a third.

    Lines are means over all other columns (the seeds), with a gap where a trial has no number;
    bands reach one standard deviation to each side, and the dots are the single trials.

    Parameters
    ----------
    rows : pd.DataFrame
        One row per trial: the axes and the metric.
    x, line, panel : str
        Columns of the axes, e.g. ``strategy.num_clusters``, ``partition`` and ``shift``.
    names : Mapping[str, str], optional
        What they are called in the figure.
    """
    import pandas as pd

    names = names or {}
    panels = [None] if panel is None else list(rows[panel].unique())
    lines = [None] if line is None else list(rows[line].unique())
    figure, axes = new_figure(1.2 + 3.2 * len(panels), 3.6, title, columns=len(panels), sharey=True)
    told = CATALOG.final(metric)
    values = list(
        pd.unique(rows[x].sort_values())
    )  # evenly spaced: the values of an axis are often powers of two
    entries: dict[str, Artist] = {}
    for ax, value in zip(axes, panels, strict=True):
        for i, (name, colour) in enumerate(zip(lines, distinct_colours(len(lines)), strict=True)):
            dodge = 0.05 * (i - (len(lines) - 1) / 2)  # equal lines stay both in sight
            part = rows if panel is None else rows[rows[panel] == value]
            part = part if line is None else part[part[line] == name]
            if part[metric].isna().all():
                continue

            # A line of means with its band, and a dot per trial.
            scores = part[metric] * told.factor
            groups = scores.groupby(part[x])
            mean, spread = (
                groups.agg(lambda of: of.mean(skipna=False)).sort_index(),
                groups.std().fillna(0),
            )
            at = np.array([values.index(there) for there in mean.index]) + dodge
            [drawn] = ax.plot(at, mean, "o-", color=colour, ms=4)
            entries.setdefault(str(name), drawn)
            ax.fill_between(at, mean - spread, mean + spread, color=colour, alpha=0.2, lw=0)
            ax.plot(
                [values.index(there) + dodge for there in part[x]],
                scores,
                ".",
                color=colour,
                ms=3,
                alpha=0.6,
            )
        ticks(ax.xaxis, values)
        ax.set_xlabel(names.get(x, x).replace("num_", "number of ").replace("_", " "))
        ax.grid(alpha=0.25)
        if panel is not None:
            ax.set_title(f"{names.get(panel, panel)}: {value}", fontsize=9)
    axes[0].set_ylabel(told.axis_label)
    if line is not None:
        legend(axes[-1], entries, title=names.get(line, line))
    return figure


def panels_of(
    rows: "pd.DataFrame", title: str, looks: Looks | None, page: Page
) -> "tuple[Figure, list[Axes], list[str], dict[str, Style]]":
    """Return a figure with an axes per panel, as many side by side as fit, and each line's look."""
    panels, names = list(rows["panel"].unique()), list(rows["line"].unique())
    columns = min(_beside(page), len(panels))
    height = -(-len(panels) // columns)
    share: dict[str, Any] = {"sharex": True, "sharey": True}
    wide = page.width or 1.8 + 2.7 * columns
    high = 0.35 + 0.17 * len(names) + 1.15 * height if page.width else 0.9 + 2.4 * height
    figure, axes = new_figure(wide, high, "" if page.width else title, height, columns, **share)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    if looks is None:
        own = styles((("line", name),) for name in names).values()
        looks = dict(zip(names, own, strict=True))
    return figure, axes, panels, {name: looks[name] for name in names}


def _beside(page: Page) -> int:
    """Return how many panels stand side by side."""
    return max(1, int(page.width / 1.6)) if page.width else 4


def label_panels(
    figure: "Figure",
    axes: "list[Axes]",
    panels: Sequence[str],
    entries: "Mapping[str, Artist]",
    label: str,
    page: Page,
) -> None:
    """Name panels and their axis of values, and add the legend."""
    columns = min(_beside(page), len(panels))
    for i, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        if len(panels) > 1 or not page.width:
            ax.set_title(panel, fontsize=8 if page.width else 9)
        ax.grid(alpha=0.25)
        if i % columns == 0 and not page.width:
            ax.set_ylabel(label)
    if page.width:  # one label for all: panels are lower than it is long
        figure.supylabel(label, fontsize=8)
        for ax in axes[: max(0, len(panels) - columns)]:
            ax.set_xlabel("")
        legend_below(figure, entries)
    else:
        legend(axes[columns - 1], entries)


def _aligned(part: "pd.DataFrame", x: str, value: str) -> "pd.DataFrame":
    """Return a row per trial, a column where curves are read off; megabytes are interpolated."""
    import pandas as pd

    if x == "round":
        return part.pivot(index="trial", columns="round", values=value)
    curves = {trial: curve.sort_values(x) for trial, curve in part.groupby("trial")}
    first, last = max(c[x].min() for c in curves.values()), min(c[x].max() for c in curves.values())
    at = np.linspace(first, last, _POINTS)
    rows = [np.interp(at, curve[x], curve[value]) for curve in curves.values()]
    return pd.DataFrame(rows, index=list(curves), columns=at)


def _lost(part: "pd.DataFrame", x: str, value: str, at: "pd.Index") -> np.ndarray:
    """Return where the value of a trial is NaN, or was when it ended."""
    lost = np.zeros(len(at), bool)
    for _, trial in part.groupby("trial"):
        nan = trial.sort_values(x)[f"{value}_nan"].to_numpy()
        last = np.searchsorted(np.sort(trial[x].to_numpy()), at.to_numpy(), side="right") - 1
        # Between two rounds both of them count.
        after = np.minimum(last + 1, len(nan) - 1) if ALONG[x].key else last
        lost |= (last >= 0) & (nan[last] | nan[after])
    return lost


def _lacking(trials: "pd.DataFrame", value: str) -> str:
    """Return how many of a line's trials diverged or ended before others, where some did."""
    count = trials["trial"].nunique()
    diverged = trials.loc[trials[f"{value}_nan"], "trial"].nunique()
    ends = trials.groupby(["panel", "trial"])["round"].max()
    early = int((ends < ends.groupby("panel").transform("max")).sum())
    words = [f"{diverged} diverged"] * bool(diverged) + [f"{early} ended early"] * bool(early)
    return f" ({', '.join(words)} of {count})" if words else ""
