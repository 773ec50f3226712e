"""What every figure is drawn on: size and layout, colours, axes of clients and classes.

Colours stay apart for colour-blind readers (Okabe and Ito 2008, then Tol's muted scheme; cividis
for amounts). matplotlib is imported late and without pyplot: figures are made in the tracking
thread, beside the driver's work.

Names come from outside. :func:`to_png`, through which every figure goes, shows each text as it is:
nothing in it is mathematics. Legends are made by :func:`legend` alone, since matplotlib drops
entries that begin with an underscore.
"""

import colorsys
import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import sha256
from itertools import pairwise
from textwrap import TextWrapper, fill
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from fedsweep.errors import one_line
from fedsweep.escape import line, lines, shortened, storable
from fedsweep.strategies.registry import STRATEGIES

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Tick, XAxis, YAxis
    from matplotlib.backend_bases import RendererBase
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter
    from matplotlib.typing import ColorType

PALETTE = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
    "#000000", "#882255", "#999933", "#332288", "#44AA99", "#888888", "#AA4466",
)  # fmt: skip
_KINDS = 256  # of figures whose layout is kept
FEW = 40  # so many clients can be told apart by their tick labels and bars
_LONG = 60  # characters of a text beside the title
_LONG_ENTRY = 40
_LONG_TICK = 24
_TITLE_LINES = 3
_FOLDED = "folded names"
_LETTER = 0.055  # inches of one of 7 points


Layouts = LRUCache[tuple[object, ...], list[Any]]
"""Kind of figure -> where its axes lie."""


def new_layouts() -> Layouts:
    """Return what figures that are drawn one after the other share: see :func:`to_png`."""
    return LRUCache(_KINDS)


@dataclass(frozen=True)
class Page:
    """What figures are made for: a screen, or a column of a paper.

    Parameters
    ----------
    width : float
        Of a figure on paper, in inches; 0 on a screen, where each has the width that it needs. A
        paper has its captions: its figures are without titles, and legends stand below.
    formats : tuple of str
        ``png``, ``pdf``, ``svg``.
    """

    width: float = 0.0
    formats: tuple[str, ...] = ("png",)

    @property
    def dpi(self) -> int:
        """Of pixels."""
        return 300 if self.width else 130


SCREEN = Page()
"""Any width, PNG."""


@dataclass
class Extras:
    """Files that are nice to have, by path; what fails is left out, and told by name and reason.

    ``captions`` are the titles of figures that were published, by the path of their PNG.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    layouts: Layouts = field(default_factory=new_layouts)

    def add(self, name: str, make: "Callable[[], Mapping[str, bytes]]") -> None:
        """Make files, whatever comes of it."""
        try:
            self.files.update(make())
        except Exception as error:  # over names and numbers of all kinds: no result is lost for it
            self.missing[name] = one_line(error)

    def draw(self, name: str, figure: "Callable[[], Figure]", dpi: int = 110) -> None:
        """Draw a figure as a PNG file of this name, whatever comes of it."""
        self.add(name, lambda: {name: to_png(figure(), dpi, self.layouts)})

    def publish(self, name: str, figure: "Callable[[], Figure]", page: Page) -> None:
        """Draw a figure for a page, as a file of this name in each format of the page."""

        def drawn() -> dict[str, bytes]:
            made = figure()
            caption = " ".join(made.get_suptitle().split()) or name
            if page.width:
                _to_width(made, page.width)
            files = {f"{name}.png": to_png(made, page.dpi, self.layouts)}
            vectors = [kind for kind in page.formats if kind != "png"]
            files |= {f"{name}.{kind}": _to_vector(made, kind) for kind in vectors}
            self.captions[f"{name}.png"] = caption
            return files

        self.add(f"{name}.png", drawn)

    def write(self, name: str, text: Callable[[], str]) -> None:
        """Write a text file of this name, whatever comes of it."""
        self.add(name, lambda: {name: storable(text()).encode()})

    def told(self) -> list[str]:
        """Return a line for each that is missing."""
        return [line(f"{name} is missing: {reason}") for name, reason in self.missing.items()]


def strategy_colour(name: str) -> str:
    """Return a strategy's colour in every figure and MLflow's UI: its own, or one of its name."""
    own: str | None = vars(STRATEGIES[name]).get("colour") if name in STRATEGIES else None
    if own is not None:
        return own
    # A hue of 16 bits, neither pale nor dark: two names that meet are a matter of luck.
    digest = int.from_bytes(sha256(name.encode()).digest()[:3])
    hue, lightness = (digest >> 8) / 2**16, 0.35 + (digest & 255) / 1020
    channels = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return "#" + "".join(f"{round(255 * channel):02X}" for channel in channels)


def to_png(figure: "Figure", dpi: int, layouts: Layouts) -> bytes:
    """Return the figure as a PNG, lightly compressed: packing costs more than the disk is worth.

    Where axes lie is worked out for the first figure of a kind, and taken over by those with the
    same size and texts: laying out is nearly half of drawing, and the trials of a sweep draw a few
    kinds. ``savefig`` would draw twice.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    _as_it_is(figure)
    kind = (
        dpi,
        *figure.get_size_inches(),
        figure.get_suptitle().count("\n"),
        *(text.get_text() for below in figure.legends for text in below.get_texts()),
        *map(_room, figure.axes),
    )
    if known := layouts.get(kind):
        figure.set_layout_engine("none")
        for axes, place in zip(figure.axes, known, strict=True):
            axes.set_position(place)
    buffer = io.BytesIO()
    figure.set_dpi(dpi)
    # Boxes stand for letters that the font lacks: a warning for each of them would say no more.
    warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
    FigureCanvasAgg(figure).print_png(buffer, pil_kwargs={"compress_level": 3})
    layouts[kind] = known or [axes.get_position(original=True).frozen() for axes in figure.axes]
    return buffer.getvalue()


def _to_vector(figure: "Figure", kind: str) -> bytes:
    """Return a figure that :func:`to_png` has drawn as PDF or SVG: the same bytes each time.

    Fonts are embedded as TrueType, which publishers take; SVG has its letters as outlines.
    """
    from matplotlib import rc_context

    told: dict[str, None] = {"CreationDate": None} if kind == "pdf" else {"Date": None}
    buffer = io.BytesIO()
    with rc_context({"pdf.fonttype": 42, "svg.hashsalt": "fedsweep"}):
        figure.savefig(buffer, format=kind, metadata=told)
    return buffer.getvalue()


def _to_width(figure: "Figure", width: float) -> None:
    """Make a figure that was laid out for a screen as wide as a column, without its title."""
    if figure._suptitle is not None:  # type: ignore[attr-defined]
        figure.suptitle("")
    wide, high = figure.get_size_inches()
    if wide != width:
        figure.set_size_inches(width, max(high * width / wide, min(high, 0.6 * width)))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.label.set_fontsize(8)
        axes.title.set_fontsize(8)


def _as_it_is(figure: "Figure") -> None:
    """Have all text drawn as it is: one line (but for the title), no mathematics, not too long."""
    from matplotlib.text import Text
    from matplotlib.ticker import ScalarFormatter

    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        named = axis.get_major_formatter()
        if axis.get_gid() == _FOLDED:  # its names are lines already
            continue
        if not isinstance(named, ScalarFormatter):  # drawing takes the texts from it once more
            axis.set_major_formatter(partial(_tick, named))
    title = figure._suptitle  # type: ignore[attr-defined]  # the one text of several lines
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        shown = text.get_text()
        told = lines(shown) if text is title else shortened(line(shown), _LONG)
        if told != shown:
            text.set_text(told)


def _tick(named: "Formatter", x: float, place: int | None = None) -> str:
    return shortened(line(named(x, place)), _LONG_TICK)


def legend(
    axes: "Axes", entries: "Mapping[str, Artist]", outside: bool = True, **style: Any
) -> None:
    """Add a legend of these names and what they stand for, beside the axes or where room is."""
    for name, artist in entries.items():
        artist.set_label(name)
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1), "frameon": False}
    place = beside if outside else {"loc": "best"}
    if entries:
        names = [shortened(line(name), _LONG_ENTRY) for name in entries]
        axes.legend(list(entries.values()), names, **{"fontsize": 7, **place, **style})


def legend_below(figure: "Figure", entries: "Mapping[str, Artist]") -> None:
    """Add a legend under all axes, in as many columns as there is room for."""
    if not entries:
        return
    names = [shortened(line(name), _LONG_ENTRY) for name in entries]
    wide = 0.42 + _LETTER * max(map(len, names))  # inches of an entry
    columns = max(1, min(len(names), int(figure.get_size_inches()[0] / wide)))
    figure.legend(
        list(entries.values()), names, loc="outside lower center", ncols=columns, fontsize=7,
        frameon=False, handlelength=2.2, columnspacing=1.2,
    )  # fmt: skip


def _room(axes: "Axes") -> tuple[object, ...]:
    """Return what takes room around axes, but for ticks' numbers: these are of like widths."""
    legend = axes.get_legend()
    named = [
        [tick.label1.get_text() for tick in axis.majorTicks] for axis in (axes.xaxis, axes.yaxis)
    ]
    return (
        axes.get_xlabel(),
        axes.get_ylabel(),
        *(max(map(len, names), default=0) for names in named),
        any(text.get_in_layout() for text in axes.texts),
        *(text.get_text() for text in (legend.get_texts() if legend else ())),
    )


def new_figure(
    width: float, height: float, title: str, rows: int = 1, columns: int = 1, **share: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure that lays itself out, and its axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        wide = int(12 * width)
        figure.suptitle(fill(shortened(line(title), _TITLE_LINES * wide), wide), fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False, **share).ravel().tolist()
    for ax in axes:
        _ticks_by_copy(ax)
        ax.tick_params(labelsize=8)
    return figure, axes


def _ticks_by_copy(axes: "Axes") -> None:
    """Have ticks made as copies of the first of their axis, in a tenth of the time.

    matplotlib makes each from the style, then copies the first one's look onto it in depth: a third
    of all that drawing took. Where another release calls these methods otherwise, its ticks are
    made its way. An axis's ticks share their font, which is only ever set for all of them.
    """
    for axis in (axes.xaxis, axes.yaxis):
        if not {"_get_tick", "_copy_tick_props"} <= set(dir(axis)):
            continue
        axis._get_tick = partial(_next_tick, axis, axis._get_tick)  # type: ignore[union-attr]
        axis._copy_tick_props = _is_copied  # type: ignore[union-attr]


def _next_tick(axis: "XAxis | YAxis", make: "Callable[[bool], Tick]", major: bool) -> "Tick":
    there = axis.majorTicks if major else axis.minorTicks
    if not there:
        return make(major)
    tick = copy(there[0])
    for part in ("tick1line", "tick2line", "gridline", "label1", "label2"):
        setattr(tick, part, copy(getattr(tick, part)))
    return tick


def _is_copied(first: "Tick", tick: "Tick") -> None:
    """Leave a tick as it is."""


def distinct_colours(count: int) -> "list[ColorType]":
    """Return distinct colours; above the palette's length, even steps on a ramp."""
    if count <= len(PALETTE):
        return list(PALETTE[:count])
    from matplotlib import colormaps

    return list(colormaps["cividis"](np.linspace(0, 1, count)))


def client_width(clients: int) -> float:
    """Return a figure width in inches that leaves every client at least a pixel."""
    return float(np.clip(2.5 + 0.3 * clients, 4.5, 12))


def room_for(names: Sequence[str]) -> float:
    """Return the inches that long names take beyond those of a usual length."""
    longest = max((len(line(name)) for name in names), default=0)
    return 0.06 * max(0, min(longest, _LONG_TICK) - 10)


def client_order(groups: np.ndarray, kind: np.ndarray) -> np.ndarray:
    """Return the clients' positions, sorted by group and, where many, by kind: patterns show."""
    return np.lexsort((kind, groups)) if len(groups) > FEW else np.argsort(groups, kind="stable")


def client_axis(axis: "XAxis | YAxis", order: np.ndarray, groups: np.ndarray, kind: str) -> None:
    """Label an axis of clients: by their numbers, or by what they are sorted by, if by kind."""
    by = ["group"] if groups.max(initial=0) > 0 else []
    if len(order) > FEW:
        by.append(kind)
    else:
        ticks(axis, order)
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


def write_in(
    axes: "Axes", texts: "Sequence[str]", places: np.ndarray, colours: "Sequence[ColorType]" = ()
) -> None:
    """Write short texts into an image, out of the layout's sight.

    Parameters
    ----------
    texts : sequence of str
        What is written.
    places : (texts, 2) float
        Where the middle of each lies, in data coordinates.
    colours : sequence of colours, optional
        Of each; black.
    """
    axes.add_artist(labels_type()(axes, texts, places, colours or ["black"] * len(texts)))


def cells(axes: "Axes", values: np.ndarray, bright: float, least: float = 0.0) -> None:
    """Write the numbers of an image (rows, columns) into it, but for those below ``least``.

    Those above ``bright`` are black, the others white.
    """
    rows, columns = np.nonzero(values >= least)
    shown = values[rows, columns]
    colours = ["black" if value > bright else "white" for value in shown]
    places = np.stack([columns, rows], axis=1)
    write_in(axes, [f"{value:.0f}" for value in shown], places, colours)


@cache
def labels_type() -> "Callable[..., Artist]":
    """Return the class of many short texts as one artist: matplotlib, which it is one of, is late.

    An artist per number takes a millisecond to make, to lay out and to draw, and a picture has
    hundreds of few kinds. Here each kind is laid out once.
    """
    from matplotlib.artist import Artist
    from matplotlib.colors import to_rgba
    from matplotlib.text import Text

    class Labels(Artist):
        def __init__(
            self,
            axes: "Axes",
            texts: Sequence[str],
            places: np.ndarray,
            colours: "Sequence[ColorType]",
        ) -> None:
            super().__init__()
            self.set_in_layout(False)
            self.set_zorder(Text.zorder)
            self.texts = [shortened(line(text), _LONG) for text in texts]
            self._sample = Text(0, 0, "", fontsize=7, ha="center", figure=axes.figure)
            self._sample.set_parse_math(False)
            self._places, self._colours = places, [to_rgba(colour) for colour in colours]

        def draw(self, renderer: "RendererBase") -> None:
            """Draw all texts as matplotlib does one."""
            offsets = {text: self._offset(renderer, text) for text in set(self.texts) if text}
            assert self.axes is not None
            middles = self.axes.transData.transform(self._places)
            _, height = renderer.get_canvas_width_height()
            font, gc = self._sample.get_fontproperties(), renderer.new_gc()
            for text, (x, y), colour in zip(self.texts, middles, self._colours, strict=True):
                if text:
                    right, up = offsets[text]
                    gc.set_foreground(colour, isRGBA=True)
                    y = height - (y + up) if renderer.flipy() else y + up
                    renderer.draw_text(gc, x + right, y, text, font, 0.0)
            gc.restore()
            self.stale = False

        def _offset(self, renderer: "RendererBase", text: str) -> tuple[float, float]:
            """Return where a text's baseline begins, seen from its middle, in pixels."""
            self._sample.set(text=text, va="baseline")
            below = self._sample.get_window_extent(renderer).y0
            self._sample.set(va="center")
            box = self._sample.get_window_extent(renderer)
            return box.x0, box.y0 - below

    return Labels


def colorbar(
    figure: "Figure", axes: "Axes | list[Axes]", image: "ScalarMappable", label: str
) -> None:
    """Add the scale of an image's colours."""
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(image, ax=axes, label=label, pad=0.02)
    if np.asarray(image.get_array()).dtype.kind == "i":  # counts
        bar.locator = MaxNLocator(integer=True)
        bar.update_ticks()
    _ticks_by_copy(bar.ax)
    bar.ax.tick_params(labelsize=7)


def ticks(axis: "XAxis | YAxis", names: Sequence[object] | np.ndarray) -> None:
    """Label every position where there is room, else some twenty of them."""
    step = 1 if len(names) <= FEW else -(-len(names) // 20)
    axis.set_ticks(range(0, len(names), step), [str(name) for name in names[::step]], fontsize=7)


class _Folding(TextWrapper):
    """Folds a text between its words, and behind the underscores that names have."""

    wordsep_re = re.compile(r"(\s+|[^\s_]+_+(?=\S))")


def folded_ticks(axis: "XAxis | YAxis", names: Sequence[str], inches: float) -> None:
    """Label every position of an axis that is so long; long names take up to three lines."""
    from matplotlib.ticker import FixedFormatter, FixedLocator

    letters = max(6, int(inches / max(1, len(names)) / _LETTER))
    fold = _Folding(letters, max_lines=3, placeholder="...").fill
    folded = [fold(shortened(line(name), 3 * letters)) for name in names]
    axis.set_major_locator(FixedLocator(range(len(names))))
    axis.set_major_formatter(FixedFormatter(folded))
    axis.set_gid(_FOLDED)
    axis.set_tick_params(labelsize=7)


def class_ticks(axis: "XAxis | YAxis", names: Sequence[str]) -> None:
    """Label an axis of classes; long names are turned."""
    ticks(axis, names)
    if axis.axis_name == "x" and max(map(len, names)) > 3:
        many = len(names) > 12
        for text in axis.get_ticklabels():
            text.set(rotation=90 if many else 45, ha="right", va="center", rotation_mode="anchor")


def whole_rounds(axes: "Axes") -> None:
    """Put the ticks of a round axis at whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
