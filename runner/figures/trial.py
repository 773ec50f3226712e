"""Figures of one trial: curves, clusters, load, what was taken for what.

Pure functions of tables: nothing is read, written or shown here.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fedsweep.catalog import CATALOG
from fedsweep.figures.canvas import (
    PALETTE,
    cells,
    class_ticks,
    client_axis,
    client_order,
    client_width,
    colorbar,
    distinct_colours,
    legend,
    new_figure,
    room_for,
    whole_rounds,
)
from fedsweep.records import Columns

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


def cluster_map(
    assignments: "pd.DataFrame", groups: Mapping[int, int] | None = None, title: str = ""
) -> "Figure":
    """Show which cluster each client was in, round by round, and which member was its server.

    Parameters
    ----------
    assignments : pd.DataFrame
        One row per client and round: ``round``, ``client``, ``cluster`` and ``server`` (bool).
    groups : Mapping[int, int], optional
        True group of each client, for rows sorted by it; with right clusters each block has one
        colour.
    """
    # The clusters as an image: a row per client, sorted, and a column per round.
    clients = np.unique(assignments["client"].to_numpy())
    rounds = np.arange(assignments["round"].min(), assignments["round"].max() + 1)
    known = np.array([(groups or {}).get(int(client), 0) for client in clients])
    last = assignments.sort_values("round").groupby("client")["cluster"].last().to_numpy()
    order = client_order(known, last)
    place = {int(clients[row]): i for i, row in enumerate(order)}
    y = assignments["client"].map(place).to_numpy()
    x = (assignments["round"] - rounds[0]).to_numpy()
    grid = np.full((len(clients), len(rounds)), np.nan)
    grid[y, x] = assignments["cluster"].to_numpy()
    clusters = int(np.nanmax(grid)) + 1

    # The image, and a dot for each server.
    figure, (axes,) = new_figure(
        min(11.0, 4.2 + 0.18 * len(rounds)),
        client_width(len(clients)) * 0.55 + 1.2,
        title or "Clusters",
    )
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = distinct_colours(clusters)
    half = 0.5
    extent = (rounds[0] - half, rounds[-1] + half, len(clients) - half, -half)
    axes.imshow(
        grid, aspect="auto", interpolation="nearest", extent=extent, cmap=ListedColormap(colours),
        vmin=-half, vmax=clusters - half,
    )  # fmt: skip
    server = assignments["server"].to_numpy(dtype=bool)
    size = np.clip(260 / len(clients), 2.0, 5.0)
    axes.plot(
        rounds[0] + x[server],
        y[server],
        "o",
        ms=size,
        mfc="white",
        mec="black",
        mew=0.6,
        linestyle="none",
    )

    # What is written around it.
    client_axis(axes.yaxis, order, known, "last cluster")
    whole_rounds(axes)
    axes.set_xlabel("round")
    sizes = np.bincount(grid[:, -1][~np.isnan(grid[:, -1])].astype(int), minlength=clusters)
    shown = range(clusters) if clusters <= 20 else (0, clusters - 1)
    entries: dict[str, Artist] = {
        f"cluster {k} ({sizes[k]} clients)": Patch(color=colours[k]) for k in shown
    }
    entries["its server"] = Line2D([], [], marker="o", mfc="white", mec="black", linestyle="none")
    legend(axes, entries)
    return figure


def cluster_squares(assignments: Columns, groups: np.ndarray) -> np.ndarray:
    """Return a round's clusters as pixels, uint8 (height, width, 3): rows groups, squares clients.

    ``assignments`` holds ``client``, ``cluster`` and ``server`` of each client, ``groups``
    (clients,) its known group.
    """
    from matplotlib.colors import to_rgb

    client, cluster, server = (
        np.asarray(assignments[name]) for name in ("client", "cluster", "server")
    )
    rows = [np.flatnonzero(groups[client] == group) for group in np.unique(groups[client])]
    if len(rows) == 1:  # no groups are known: a block as wide as high
        rows = np.array_split(rows[0], int(np.ceil(np.sqrt(len(client)))))
    side = max(4, min(32, 640 // max(map(len, rows))))
    canvas = np.full((len(rows) * side + 1, max(map(len, rows)) * side + 1, 3), 255, np.uint8)
    colours = (
        np.array([to_rgb(colour) for colour in distinct_colours(int(cluster.max()) + 1)]) * 255
    ).astype(np.uint8)
    for y, row in enumerate(rows):
        for x, i in enumerate(row):
            square = canvas[y * side + 1 : (y + 1) * side, x * side + 1 : (x + 1) * side]
            square[:] = colours[cluster[i]]
            if server[i]:
                square[side // 3 : -(side // 3), side // 3 : -(side // 3)] = 255
    return canvas


def load_plot(load: "pd.DataFrame", title: str = "") -> "Figure":
    """Show CPU and memory of hosts and nodes over time: :class:`fedsweep.records.LoadSample`."""
    figure, axes = new_figure(
        8, 5.2, title or "Load of client hosts and nodes", rows=2, columns=2, sharex=True
    )
    seconds = load["time_s"] - load["time_s"].min()
    panels = (
        ("host", "host_cpu", "host CPU (% of one core)"),
        ("node", "node_cpu", "node CPU (% of all cores)"),
        ("host", "host_rss_mb", "host memory (MB resident)"),
        ("node", "node_mem", "node memory (% of all)"),
    )
    traces = []
    for ax, (who, column, label) in zip(axes, panels, strict=True):
        traces.append(_traces(ax, seconds, load[column], load[who]))
        ax.set_ylabel(label)
        ax.set_ylim(0, 105 if who == "node" else 1.1 * max(1.0, float(load[column].max())))
        ax.grid(alpha=0.25)
    for ax in axes[2:]:
        ax.set_xlabel("time (s)")
    legend(axes[1], traces[1], title="node")
    legend(axes[2], traces[2], outside=False, title="host", framealpha=0.7)
    return figure


def curves(
    metrics: "pd.DataFrame", clients: "pd.DataFrame | None" = None, title: str = ""
) -> "Figure":
    """Show accuracy and loss over rounds: global model, clusters, clients' median and 10-90% band.

    Parameters
    ----------
    metrics : pd.DataFrame
        One row per round; ``round`` and MLflow's keys: ``1_global/acc``, ``2_clusters/c0_acc``, ...
    clients : pd.DataFrame, optional
        One row per client and round: ``round``, ``eval_acc``, ``eval_loss``.
    """
    panels = [("acc", "accuracy (%)"), ("loss", "loss (cross-entropy, nats)")]
    if "1_global/r2" in metrics or "3_clients/r2" in metrics:  # a number is learnt
        panels = [("r2", "R2"), ("loss", "loss (squared error, in deviations)")]
    what = "R2 and loss" if panels[0][0] == "r2" else "Accuracy and loss"
    figure, axes = new_figure(9.5, 3.6, title or what, columns=2)
    entries: dict[str, Artist] = {}
    for ax, (kind, label) in zip(axes, panels, strict=True):
        factor = CATALOG[f"1_global/{kind}"].factor
        if clients is not None and f"eval_{kind}" in clients:
            scored = clients[clients["eval_acc"].notna() | clients["eval_loss"].notna()]
            band = (
                scored.groupby("round")[f"eval_{kind}"]
                .quantile(np.array([0.1, 0.5, 0.9]))
                .unstack()
            )
            lost = scored[f"eval_{kind}"].isna().groupby(scored["round"]).any()
            band.loc[lost[lost].index] = np.nan  # a gap: quantiles would leave out what diverged
            if len(band):
                ax.fill_between(
                    band.index,
                    band[0.1] * factor,
                    band[0.9] * factor,
                    color="#888888",
                    alpha=0.25,
                    lw=0,
                )
                [middle] = ax.plot(band.index, band[0.5] * factor, color="#666666", lw=1.2, ls="--")
                entries.setdefault("clients: median, 10-90%", middle)
        found = {
            int(m[1]): c
            for c in metrics
            if (m := re.fullmatch(rf"2_clusters/c(\d+)_{kind}", str(c)))
        }
        for cluster, colour in zip(sorted(found), distinct_colours(len(found)), strict=True):
            drawn = _line(
                ax, metrics["round"], metrics[found[cluster]] * factor, color=colour, lw=1.3
            )
            if len(found) <= 12 or cluster in (min(found), max(found)):
                entries.setdefault(f"cluster {cluster}", drawn)
        if f"1_global/{kind}" in metrics:
            values = metrics[f"1_global/{kind}"] * factor
            drawn = _line(ax, metrics["round"], values, color="black", lw=2)
            entries.setdefault("global model", drawn)
        ax.set(xlabel="round", ylabel=label)
        whole_rounds(ax)
        ax.grid(alpha=0.25)
    axes[1].set_ylim(bottom=0)
    legend(axes[1], entries)
    return figure


def confusion_matrix(
    confusion: np.ndarray, class_names: Sequence[str], title: str = ""
) -> "Figure":
    """Show which classes are taken for which; confusion is (true, predicted) in examples."""
    classes = len(confusion)
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.2, min(9.0, 1.8 + 0.34 * classes)) + room_for(class_names)
    figure, (axes,) = new_figure(side + 0.8, side, title or "Confusion matrix")
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    if classes <= 20:
        cells(axes, share, 50, least=0.5)
    class_ticks(axes.xaxis, class_names)
    class_ticks(axes.yaxis, class_names)
    axes.set(xlabel="predicted class", ylabel="true class")
    colorbar(figure, axes, image, "share of the true class (%)")
    return figure


def _line(axes: "Axes", x: "pd.Series", y: "pd.Series", **style: Any) -> "Line2D":
    """Draw a line through the rounds that were evaluated; a lone point as a dot."""
    there = y.notna()
    [drawn] = axes.plot(x[there], y[there], marker="o" if there.sum() == 1 else None, **style)
    return drawn


def _traces(
    axes: "Axes", seconds: "pd.Series", values: "pd.Series", who: "pd.Series"
) -> "dict[str, Artist]":
    """Draw one line per host or node, and return them by name;
    of more than eight, the median and the range.

    Samples are averaged over short steps of time: the hosts of one node sample it at different
    moments.
    """
    step = max(1.0, float(seconds.max()) / 300)
    table = values.groupby([(seconds // step) * step, who]).mean().unstack()
    if len(table.columns) <= 8:
        entries: dict[str, Artist] = {}
        for name, colour in zip(table, distinct_colours(len(table.columns)), strict=True):
            line = table[name].dropna()
            [entries[str(name)]] = axes.plot(line.index, line, color=colour, lw=1.2)
        return entries
    low, middle, high = table.min(axis=1), table.median(axis=1), table.max(axis=1)
    area = axes.fill_between(table.index, low, high, color=PALETTE[0], alpha=0.2, lw=0)
    [drawn] = axes.plot(table.index, middle, color=PALETTE[0], lw=1.2)
    return {"range": area, f"median of {len(table.columns)}": drawn}
