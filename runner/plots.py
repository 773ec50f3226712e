"""Figures from tables and records. Pure functions: nothing is read, written or shown here.

Colours stay apart for colour-blind readers (Okabe and Ito 2008, then Tol's muted scheme; cividis for amounts).
matplotlib is imported late and without pyplot: figures are made in the tracking thread, beside the driver's work.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#000000", "#882255", "#999933", "#332288", "#44AA99", "#888888", "#AA4466",
)  # fmt: skip
_STRATEGIES = (
    "fedavg", "fedprox", "kmeans", "fedavgm", "fedadam", "local", "fedadagrad",
    "krum", "multikrum", "fedyogi", "fedmedian", "fedtrimmedavg", "bulyan", "qfedavg",
    "ifca", "oracle", "cfl", "clove", "flhc", "fesem", "fedgroup", "pacfl", "stocfl", "fedclust",
    "fedsoft", "ditto", "apfl", "fedper", "fedavg_ft", "scaffold",
)  # fmt: skip
_FEW = 40  # so many clients can be told apart by their tick labels and bars


def strategy_colour(name: str) -> str:
    """Return a strategy's colour, the same in every figure and in MLflow's UI."""
    place = _STRATEGIES.index(name) if name in _STRATEGIES else -1
    darker, index = divmod(place, len(PALETTE))
    colour = PALETTE[index]
    if darker <= 0:
        return colour
    # Past the palette its colours come again, mixed with black or white: each still its own.
    share, to = (0.55, 0) if darker == 1 else (0.45, 255)
    channels = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(share * c + (1 - share) * to) + (index if to == 0 else 0):02X}" for c in channels)


def to_png(figure: "Figure", dpi: int = 110) -> bytes:
    """Return the figure as a PNG file; lightly compressed, since packing costs more time than the disk is worth."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, pil_kwargs={"compress_level": 3})
    return buffer.getvalue()


def label_heatmap(counts: np.ndarray, groups: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Show how many examples of each class each client holds; counts is (clients, classes), groups (clients,)."""
    order = _order(groups, counts.argmax(axis=1))
    clients, classes = counts.shape
    figure, (axes,) = new_figure(
        _width(clients), 1.6 + 0.22 * min(classes, 30), title or "Examples per client and class"
    )
    image = axes.imshow(counts[order].T, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0)
    if clients * classes <= 240:
        dark = counts.max() / 2
        for x, client in enumerate(order):
            for y in range(classes):
                value = int(counts[client, y])
                _cell(axes, x, y, value, dark=value > dark)
    _client_axis(axes.xaxis, order, groups, "largest class")
    _class_ticks(axes.yaxis, class_names)
    axes.set_ylabel("class")
    _colorbar(figure, axes, image, "training examples")
    return figure


def label_bars(counts: np.ndarray, groups: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Show each client's examples as one bar stacked by class; counts is (clients, classes), groups (clients,)."""
    order = _order(groups, counts.argmax(axis=1))
    clients, classes = counts.shape
    figure, (axes,) = new_figure(_width(clients) + 1, 3.4, title or "Examples per client, stacked by class")
    # One outline per class with nan between the bars: a patch per client and class would take seconds to draw.
    gap = 0.4 if clients <= _FEW else 0.5
    place = np.arange(clients)
    corners = np.stack([place - gap, place + gap, np.full(clients, np.nan)], axis=1)[:, : 3 if clients <= _FEW else 2]
    tops = np.cumsum(counts[order], axis=1)
    for label, colour in enumerate(distinct_colours(classes)):
        top = np.repeat(tops[:, label], corners.shape[1])
        base = top - np.repeat(counts[order, label], corners.shape[1])
        name = class_names[label] if classes <= 20 or label in (0, classes - 1) else None
        axes.fill_between(corners.ravel(), base, top, color=colour, lw=0, label=name)
    axes.set_xlim(-0.7, clients - 0.3)
    _client_axis(axes.xaxis, order, groups, "largest class")
    axes.set_ylabel("training examples")
    axes.set_ylim(bottom=0)
    axes.legend(title="class", loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, reverse=True, frameon=False)
    return figure


def class_counts(counts: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Show how many examples of each class all clients hold together; counts is (clients, classes)."""
    totals = counts.sum(axis=0)
    figure, (axes,) = new_figure(
        max(4.5, min(10.0, 2 + 0.4 * len(totals))), 3, title or "Examples per class, all clients"
    )
    bars = axes.bar(range(len(totals)), totals, color=PALETTE[0])
    if len(totals) <= 20:
        axes.bar_label(bars, fontsize=7, padding=1)
        axes.margins(y=0.1)
    _class_ticks(axes.xaxis, class_names)
    axes.set(xlabel="class", ylabel="training examples")
    return figure


def example_grid(images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Show images with their classes; images is uint8 (n, channels, height, width), labels (n,)."""
    count, _, height, width = images.shape
    columns = min(8, count)
    rows = -(-count // columns)
    pad, caption = max(1, width // 12), max(2, height // 3)
    # One composed picture: an axes object per example would take ten times as long to draw.
    canvas = np.full((rows * (height + caption), columns * (width + pad) - pad, 3), 255, np.uint8)
    wide = max(0.95 * columns, 3.0)
    figure, (axes,) = new_figure(wide, 0.4 + wide * canvas.shape[0] / canvas.shape[1], title or "Examples")
    for i in range(count):
        top, left = i // columns * (height + caption), i % columns * (width + pad)
        canvas[top : top + height, left : left + width] = np.moveaxis(images[i], 0, -1)[..., :3]
        middle = left + width / 2 - 0.5, top + height + caption * 0.35
        axes.text(*middle, class_names[int(labels[i])], ha="center", va="center", fontsize=7, in_layout=False)
    axes.imshow(canvas, interpolation="nearest")
    axes.axis("off")
    return figure


def cluster_map(assignments: "pd.DataFrame", groups: Mapping[int, int] | None = None, title: str = "") -> "Figure":
    """Show which cluster each client was in, round by round, and which member was its server.

    Parameters
    ----------
    assignments : pd.DataFrame
        One row per client and round: ``round``, ``client``, ``cluster`` and ``server`` (bool).
    groups : Mapping[int, int], optional
        True group of each client, for rows sorted by it; with right clusters each block has one colour.
    """
    clients = np.unique(assignments["client"].to_numpy())
    rounds = np.arange(assignments["round"].min(), assignments["round"].max() + 1)
    known = np.array([(groups or {}).get(int(client), 0) for client in clients])
    last = assignments.sort_values("round").groupby("client")["cluster"].last().to_numpy()
    order = _order(known, last)
    place = {int(clients[row]): i for i, row in enumerate(order)}
    y = assignments["client"].map(place).to_numpy()
    x = (assignments["round"] - rounds[0]).to_numpy()
    grid = np.full((len(clients), len(rounds)), np.nan)
    grid[y, x] = assignments["cluster"].to_numpy()
    clusters = int(np.nanmax(grid)) + 1
    figure, (axes,) = new_figure(
        min(11.0, 4.2 + 0.18 * len(rounds)), _width(len(clients)) * 0.55 + 1.2, title or "Clusters"
    )
    from matplotlib.colors import ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = distinct_colours(clusters)
    half = 0.5
    extent = (rounds[0] - half, rounds[-1] + half, len(clients) - half, -half)
    axes.imshow(
        grid, aspect="auto", interpolation="nearest", extent=extent, cmap=ListedColormap(colours), vmin=-half,
        vmax=clusters - half,
    )  # fmt: skip
    server = assignments["server"].to_numpy(dtype=bool)
    size = np.clip(260 / len(clients), 2.0, 5.0)
    axes.plot(rounds[0] + x[server], y[server], "o", ms=size, mfc="white", mec="black", mew=0.6, linestyle="none")
    _client_axis(axes.yaxis, order, known, "last cluster")
    whole_rounds(axes)
    axes.set_xlabel("round")
    sizes = np.bincount(grid[:, -1][~np.isnan(grid[:, -1])].astype(int), minlength=clusters)
    shown = range(clusters) if clusters <= 20 else (0, clusters - 1)
    handles: list[Any] = [Patch(color=colours[k], label=f"cluster {k} ({sizes[k]} clients)") for k in shown]
    handles.append(Line2D([], [], marker="o", mfc="white", mec="black", linestyle="none", label="its server"))
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, frameon=False)
    return figure


def cluster_squares(assignments: Mapping[str, Sequence[Any]], groups: np.ndarray) -> np.ndarray:
    """Return one round's clusters as pixels, (height, width, 3) uint8: a row per known group, a square per client.

    ``assignments`` holds ``client``, ``cluster`` and ``server`` of each client, ``groups`` (clients,) its known group.
    """
    from matplotlib.colors import to_rgb

    client, cluster, server = (np.asarray(assignments[name]) for name in ("client", "cluster", "server"))
    rows = [np.flatnonzero(groups[client] == group) for group in np.unique(groups[client])]
    if len(rows) == 1:  # no groups are known: a block as wide as high
        rows = np.array_split(rows[0], int(np.ceil(np.sqrt(len(client)))))
    side = max(4, min(32, 640 // max(map(len, rows))))
    canvas = np.full((len(rows) * side + 1, max(map(len, rows)) * side + 1, 3), 255, np.uint8)
    colours = (np.array([to_rgb(colour) for colour in distinct_colours(int(cluster.max()) + 1)]) * 255).astype(np.uint8)
    for y, row in enumerate(rows):
        for x, i in enumerate(row):
            square = canvas[y * side + 1 : (y + 1) * side, x * side + 1 : (x + 1) * side]
            square[:] = colours[cluster[i]]
            if server[i]:
                square[side // 3 : -(side // 3), side // 3 : -(side // 3)] = 255
    return canvas


def load_plot(load: "pd.DataFrame", title: str = "") -> "Figure":
    """Show CPU and memory of hosts and nodes over time; columns as in :class:`runner.records.LoadSample`."""
    figure, axes = new_figure(8, 5.2, title or "Load of client hosts and nodes", rows=2, columns=2, sharex=True)
    seconds = load["time_s"] - load["time_s"].min()
    panels = (
        ("host", "host_cpu", "host CPU (% of one core)"),
        ("node", "node_cpu", "node CPU (% of all cores)"),
        ("host", "host_rss_mb", "host memory (MB resident)"),
        ("node", "node_mem", "node memory (% of all)"),
    )
    for ax, (who, column, label) in zip(axes, panels, strict=True):
        _traces(ax, seconds, load[column], load[who])
        ax.set_ylabel(label)
        ax.set_ylim(0, 105 if who == "node" else None)
        ax.grid(alpha=0.25)
    for ax in axes[2:]:
        ax.set_xlabel("time (s)")
    axes[1].legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize=7, title="node", frameon=False)
    axes[2].legend(loc="best", fontsize=7, title="host", framealpha=0.7)
    return figure


def curves(metrics: "pd.DataFrame", clients: "pd.DataFrame | None" = None, title: str = "") -> "Figure":
    """Show accuracy and loss over rounds: global model, clusters, and the clients' median with its 10-90% band.

    Parameters
    ----------
    metrics : pd.DataFrame
        One row per round; ``round`` and MLflow's keys: ``1_global/acc``, ``2_clusters/c0_acc``, ...
    clients : pd.DataFrame, optional
        One row per client and round: ``round``, ``eval_acc``, ``eval_loss``.
    """
    figure, axes = new_figure(9.5, 3.6, title or "Accuracy and loss", columns=2)
    panels: tuple[tuple[str, str, Callable[[Any], Any]], ...] = (
        ("acc", "accuracy (%)", lambda share: share * 100),
        ("loss", "loss (cross-entropy, nats)", lambda loss: loss),
    )
    for ax, (kind, label, scale) in zip(axes, panels, strict=True):
        if clients is not None and f"eval_{kind}" in clients:
            band = clients.groupby("round")[f"eval_{kind}"].quantile(np.array([0.1, 0.5, 0.9])).unstack().dropna()
            if len(band):
                ax.fill_between(band.index, scale(band[0.1]), scale(band[0.9]), color="#888888", alpha=0.25, lw=0)
                ax.plot(band.index, scale(band[0.5]), color="#666666", lw=1.2, ls="--", label="clients: median, 10-90%")
        found = {int(m[1]): c for c in metrics if (m := re.fullmatch(rf"2_clusters/c(\d+)_{kind}", str(c)))}
        for cluster, colour in zip(sorted(found), distinct_colours(len(found)), strict=True):
            name = f"cluster {cluster}" if len(found) <= 12 or cluster in (min(found), max(found)) else None
            _line(ax, metrics["round"], scale(metrics[found[cluster]]), color=colour, lw=1.3, label=name)
        if f"1_global/{kind}" in metrics:
            values = scale(metrics[f"1_global/{kind}"])
            _line(ax, metrics["round"], values, color="black", lw=2, label="global model")
        ax.set(xlabel="round", ylabel=label)
        whole_rounds(ax)
        ax.grid(alpha=0.25)
    axes[1].set_ylim(bottom=0)
    if axes[0].get_legend_handles_labels()[0]:
        axes[1].legend(*axes[0].get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(1, 1), fontsize=7,
                       frameon=False)  # fmt: skip
    return figure


def confusion_matrix(confusion: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Show which classes are taken for which; confusion is (true, predicted) in examples."""
    classes = len(confusion)
    share = 100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    side = max(4.2, min(9.0, 1.8 + 0.34 * classes))
    figure, (axes,) = new_figure(side + 0.8, side, title or "Confusion matrix")
    image = axes.imshow(share, cmap="cividis", vmin=0, vmax=100, interpolation="nearest")
    if classes <= 20:
        for true, predicted in zip(*np.nonzero(share >= 0.5), strict=True):
            value = share[true, predicted]
            _cell(axes, predicted, true, value, dark=value > 50)
    _class_ticks(axes.xaxis, class_names)
    _class_ticks(axes.yaxis, class_names)
    axes.set(xlabel="predicted class", ylabel="true class")
    _colorbar(figure, axes, image, "share of the true class (%)")
    return figure


def new_figure(
    width: float, height: float, title: str, rows: int = 1, columns: int = 1, **share: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure that lays itself out, and its axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False, **share).ravel().tolist()
    for ax in axes:
        ax.tick_params(labelsize=8)
    return figure, axes


def distinct_colours(count: int) -> "list[Any]":
    """Return distinct colours; above the palette's length, even steps on a ramp."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    from matplotlib import colormaps

    return list(colormaps["cividis"](np.linspace(0, 1, count)))


def _width(clients: int) -> float:
    """Return a figure width in inches that leaves every client at least a pixel."""
    return float(np.clip(2.5 + 0.3 * clients, 4.5, 12))


def _order(groups: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return the positions of the clients, sorted by group and, where they are many, by kind: patterns show."""
    return np.lexsort((kind, groups)) if len(groups) > _FEW else np.argsort(groups, kind="stable")


def _client_axis(axis: Any, order: np.ndarray, groups: np.ndarray, kind: str) -> None:
    """Label an axis of clients: by their numbers, or, where they are sorted by kind, by what they are sorted by."""
    by = ["group"] if groups.max(initial=0) > 0 else []
    if len(order) > _FEW:
        by.append(kind)
    else:
        _ticks(axis, order)
    axis.set_label_text("client" + (f", sorted by {' and '.join(by)}" if by else ""))
    _group_lines(axis.axes, groups[order], horizontal=axis.axis_name == "y")


def _group_lines(axes: "Axes", groups: np.ndarray, horizontal: bool) -> None:
    """Draw a line where the (sorted) group changes, and name the groups where there is room."""
    starts = np.flatnonzero(np.diff(groups)) + 1
    for start in starts:
        (axes.axhline if horizontal else axes.axvline)(start - 0.5, color="white", lw=2)
        (axes.axhline if horizontal else axes.axvline)(start - 0.5, color="#D55E00", lw=1, ls="--")
    if 0 < len(starts) < 12 and not horizontal:
        bounds = [0, *starts, len(groups)]
        for begin, end in pairwise(bounds):
            middle = (begin + end - 1) / 2
            axes.annotate(
                f"group {groups[begin]}", (middle, 1), (0, 2), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", fontsize=7,
            )  # fmt: skip


def _cell(axes: "Axes", x: int, y: int, value: float, dark: bool) -> None:
    """Write a number into a cell of an image; out of the layout's sight, which would measure each of them."""
    colour = "black" if dark else "white"
    axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour, in_layout=False)


def _colorbar(figure: "Figure", axes: "Axes", image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02)
    bar.ax.tick_params(labelsize=7)


def _ticks(axis: Any, names: Sequence[Any] | np.ndarray) -> None:
    """Label every position where there is room, else some twenty of them."""
    step = 1 if len(names) <= _FEW else -(-len(names) // 20)
    axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]], fontsize=7)


def _class_ticks(axis: Any, names: Sequence[str]) -> None:
    _ticks(axis, names)
    if axis.axis_name == "x" and max(map(len, names)) > 3:
        many = len(names) > 12
        for text in axis.get_ticklabels():
            text.set(rotation=90 if many else 45, ha="right", va="center", rotation_mode="anchor")


def whole_rounds(axes: "Axes") -> None:
    """Put the ticks of a round axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _line(axes: "Axes", x: "pd.Series", y: "pd.Series", **style: Any) -> None:
    """Draw a line through the rounds that were evaluated; a lone point as a dot."""
    there = y.notna()
    axes.plot(x[there], y[there], marker="o" if there.sum() == 1 else None, **style)


def _traces(axes: "Axes", seconds: "pd.Series", values: "pd.Series", who: "pd.Series") -> None:
    """Draw one line per host or node; of more than eight, the median and the range.

    Samples are averaged over short steps of time: the hosts of one node sample it at different moments.
    """
    step = max(1.0, float(seconds.max()) / 300)
    table = values.groupby([(seconds // step) * step, who]).mean().unstack()
    if len(table.columns) <= 8:
        for name, colour in zip(table, distinct_colours(len(table.columns)), strict=True):
            line = table[name].dropna()
            axes.plot(line.index, line, color=colour, lw=1.2, label=str(name))
        return
    low, middle, high = table.min(axis=1), table.median(axis=1), table.max(axis=1)
    axes.fill_between(table.index, low, high, color=PALETTE[0], alpha=0.2, lw=0, label="range")
    axes.plot(table.index, middle, color=PALETTE[0], lw=1.2, label=f"median of {len(table.columns)}")
