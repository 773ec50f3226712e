"""Figures of a data set's split: who holds how much of what.

Pure functions of arrays: nothing is read, written or shown here.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsweep.data.divergence import earth_movers, js_divergence
from fedsweep.escape import line, shortened
from fedsweep.figures.canvas import (
    FEW,
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
    ticks,
    write_in,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTION = 14  # characters that have room below an example


def label_heatmap(
    counts: np.ndarray, groups: np.ndarray, class_names: Sequence[str], title: str = ""
) -> "Figure":
    """Show how many examples of each class each client holds;
    counts is (clients, classes), groups (clients,).
    """
    order = client_order(groups, counts.argmax(axis=1))
    clients, classes = counts.shape
    figure, (axes,) = new_figure(
        client_width(clients),
        1.6 + 0.22 * min(classes, 30),
        title or "Examples per client and class",
    )
    image = axes.imshow(
        counts[order].T, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0
    )
    if clients * classes <= 240:
        cells(axes, counts[order].T, counts.max() / 2)
    client_axis(axes.xaxis, order, groups, "largest class")
    class_ticks(axes.yaxis, class_names)
    axes.set_ylabel("class")
    colorbar(figure, axes, image, "training examples")
    return figure


def label_bars(
    counts: np.ndarray, groups: np.ndarray, class_names: Sequence[str], title: str = ""
) -> "Figure":
    """Show each client's examples as one bar stacked by class;
    counts is (clients, classes), groups (clients,).
    """
    order = client_order(groups, counts.argmax(axis=1))
    clients, classes = counts.shape
    figure, (axes,) = new_figure(
        client_width(clients) + 1 + room_for(class_names),
        3.4,
        title or "Examples per client, stacked by class",
    )
    # One outline per class with nan between the bars: a patch per client and class would take
    # seconds to draw.
    gap = 0.4 if clients <= FEW else 0.5
    place = np.arange(clients)
    corners = np.stack([place - gap, place + gap, np.full(clients, np.nan)], axis=1)[
        :, : 3 if clients <= FEW else 2
    ]
    tops = np.cumsum(counts[order], axis=1)
    entries = {}
    for label, colour in enumerate(distinct_colours(classes)):
        top = np.repeat(tops[:, label], corners.shape[1])
        base = top - np.repeat(counts[order, label], corners.shape[1])
        area = axes.fill_between(corners.ravel(), base, top, color=colour, lw=0)
        if classes <= 20 or label in (0, classes - 1):
            entries[class_names[label]] = area
    axes.set_xlim(-0.7, clients - 0.3)
    client_axis(axes.xaxis, order, groups, "largest class")
    axes.set_ylabel("training examples")
    axes.set_ylim(bottom=0)
    legend(axes, entries, title="class", reverse=True)
    return figure


def class_counts(counts: np.ndarray, class_names: Sequence[str], title: str = "") -> "Figure":
    """Show how many examples of each class all clients hold together;
    counts is (clients, classes).
    """
    totals = counts.sum(axis=0)
    figure, (axes,) = new_figure(
        max(4.5, min(10.0, 2 + 0.4 * len(totals))),
        3 + room_for(class_names),
        title or "Examples per class, all clients",
    )
    bars = axes.bar(range(len(totals)), totals, color=PALETTE[0])
    if len(totals) <= 20:
        axes.bar_label(bars, fontsize=7, padding=1)
        axes.margins(y=0.1)
    class_ticks(axes.xaxis, class_names)
    axes.set(xlabel="class", ylabel="training examples")
    return figure


def divergences(counts: np.ndarray, groups: np.ndarray, title: str) -> "Figure":
    """Show both divergences of each client as bars, sorted by known group;
    counts is (clients, classes).
    """
    order = np.argsort(groups, kind="stable")
    colours = [PALETTE[int(group) % len(PALETTE)] for group in groups[order]]
    figure, (upper, lower) = new_figure(client_width(len(order)), 4.4, title, rows=2, sharex=True)
    for axes, values, label in (
        (upper, js_divergence(counts), "Jensen-Shannon (bits)"),
        (lower, earth_movers(counts), "earth mover's"),
    ):
        axes.bar(
            np.arange(len(order)),
            values[order],
            color=colours,
            width=0.8 if len(order) <= FEW else 1.0,
        )
        axes.axhline(float(np.nanmean(values)), color="black", lw=0.8, ls="--")
        axes.set_ylabel(label)
        axes.set_ylim(0, 1)
    if len(order) <= FEW:
        ticks(lower.xaxis, order)
    grouped = groups.max(initial=0) > 0
    lower.set_xlabel("client, sorted and coloured by group" if grouped else "client")
    return figure


def example_grid(
    images: np.ndarray, labels: np.ndarray, class_names: Sequence[str], title: str = ""
) -> "Figure":
    """Show images with their classes; images is uint8 (n, channels, height, width), labels (n,)."""
    count, _, height, width = images.shape
    columns = min(8, count)
    rows = -(-count // columns)
    pad, caption = max(1, width // 12), max(2, height // 3)
    # One composed picture: an axes object per example would take ten times as long to draw.
    canvas = np.full((rows * (height + caption), columns * (width + pad) - pad, 3), 255, np.uint8)
    wide = max(0.95 * columns, 3.0)
    figure, (axes,) = new_figure(
        wide, 0.4 + wide * canvas.shape[0] / canvas.shape[1], title or "Examples"
    )
    middles = np.zeros((count, 2))
    for i in range(count):
        top, left = i // columns * (height + caption), i % columns * (width + pad)
        canvas[top : top + height, left : left + width] = np.moveaxis(images[i], 0, -1)[..., :3]
        middles[i] = left + width / 2 - 0.5, top + height + caption * 0.35
    captions = [shortened(line(class_names[int(label)]), _CAPTION) for label in labels]
    write_in(axes, captions, middles)
    axes.imshow(canvas, interpolation="nearest")
    axes.set(xticks=[], yticks=[])  # hidden ones would be made, too
    axes.axis("off")
    return figure
