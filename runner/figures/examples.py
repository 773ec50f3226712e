"""Examples that are no images: rows of features, series, text.

Pure functions of arrays: nothing is read, written or shown here.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedsweep.escape import line, shortened
from fedsweep.figures.canvas import PALETTE, new_figure, ticks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS = 12  # examples that have room
_FEATURES = 24
_CHARACTERS = 80
_CAPTION = 14


def feature_rows(
    x: np.ndarray, captions: Sequence[str], names: Sequence[str], title: str = ""
) -> "Figure":
    """Show rows of features as colours, each from its least to its most among them.

    Parameters
    ----------
    x : (n, F) float
        Features, with missing ones; the first of them are shown.
    captions : sequence of str
        The target of each row.
    names : sequence of str
        Of the features.
    """
    count, features = min(len(x), _ROWS), min(x.shape[1], _FEATURES)
    shown = x[:count, :features].astype(float)
    there = ~np.isnan(shown)  # a missing value stays white
    low = np.where(there, shown, np.inf).min(axis=0, keepdims=True)
    span = np.where(there, shown, -np.inf).max(axis=0, keepdims=True) - low
    scaled = (shown - low) / np.where(span > 0, span, 1)

    figure, (axes,) = new_figure(3.2 + 0.28 * features, 1.6 + 0.26 * count, title or "Examples")
    axes.imshow(scaled, aspect="auto", cmap="cividis", interpolation="nearest", vmin=0, vmax=1)
    ticks(axes.yaxis, [_caption(text) for text in captions[:count]])
    ticks(axes.xaxis, [_caption(name) for name in names[:features]])
    axes.tick_params(axis="x", labelrotation=90)
    some = f" (the first {features} of {x.shape[1]:,})" if x.shape[1] > features else ""
    axes.set(xlabel=f"feature{some}, from its least to its most", ylabel="target")
    return figure


def series_lines(
    x: np.ndarray, captions: Sequence[str], names: Sequence[str], title: str = ""
) -> "Figure":
    """Show series (n, T, C) as lines over time, a panel each, with their targets."""
    count, channels = min(len(x), 8), min(x.shape[2], len(PALETTE))
    columns = min(4, count)
    rows = -(-count // columns)
    size = 2.4 * columns, 0.6 + 1.5 * rows
    figure, panels = new_figure(*size, title or "Examples", rows=rows, columns=columns, sharex=True)
    for ax, own, text in zip(panels, x, captions, strict=False):
        for channel in range(channels):
            ax.plot(own[:, channel], color=PALETTE[channel], lw=0.9)
        ax.set_title(_caption(text), fontsize=8)
        ax.tick_params(labelsize=6)
    for ax in panels[count:]:
        ax.axis("off")
    del names
    return figure


def text_lines(
    x: np.ndarray, captions: Sequence[str], names: Sequence[str], title: str = ""
) -> "Figure":
    """Show symbols (n, T) as text, with what follows them or what they are."""
    count = min(len(x), _ROWS)
    figure, (axes,) = new_figure(9.0, 0.8 + 0.26 * count, title or "Examples")
    axes.axis("off")
    short = all(len(name) == 1 for name in names)
    for row, (own, text) in enumerate(zip(x[:count], captions, strict=False)):
        words = ("" if short else " ").join(names[int(symbol)] for symbol in own)
        told = shortened(line(words.strip()), _CHARACTERS)
        place = 1 - (row + 0.5) / count
        axes.text(0.0, place, told, family="monospace", fontsize=7, va="center", in_layout=False)
        axes.text(1.0, place, _caption(text), fontsize=7, va="center", ha="right", in_layout=False)
    return figure


SHOWN: dict[str, "Callable[[np.ndarray, Sequence[str], Sequence[str], str], Figure]"] = {
    "rows": feature_rows,
    "series": series_lines,
    "text": text_lines,
}
"""How a task shows its examples -> what draws them."""


def _caption(text: str) -> str:
    return shortened(line(text), _CAPTION)
