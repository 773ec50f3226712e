"""How ways to solve a problem look: one colour, marker and dash, in all figures and MLflow.

A way is what a trial sets beside its problem and its seed: a method, and its settings. Where a
sweep compares methods, each has its colour and marker, and its settings differ in dash and marker;
where it compares settings of one method, each setting has a colour of its own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from fedsweep.config import TrialConfig
from fedsweep.figures.canvas import PALETTE, strategy_colour
from fedsweep.strategies.registry import STRATEGIES

Way = tuple[tuple[str, str], ...]
"""Settings by full key, in the grid's order."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES = ("-", "--", "-.", ":")
_METHOD = "strategy"
_SALT = "71"  # of those tried, the first by which built-in methods of like colours differ in marker


@dataclass(frozen=True)
class Style:
    """How a way is drawn."""

    colour: str
    marker: str = "o"
    dash: str = "-"


def way_of(axes: Mapping[str, str]) -> Way:
    """Return the way of a trial, by its place on the axes."""
    kept = (key for key in axes if key != "seed" and not TrialConfig.is_problem(key))
    return tuple((key, axes[key]) for key in kept)


def styles(ways: Iterable[Way]) -> dict[Way, Style]:
    """Return each way's style; that of a method does not depend on which others there are."""
    each = list(dict.fromkeys(ways))
    methods = [dict(way).get(_METHOD) for way in each]
    if len(set(methods)) == 1:
        return {way: _numbered(i) for i, way in enumerate(each)}
    found: dict[Way, Style] = {}
    seen: dict[str, int] = {}
    for way, method in zip(each, methods, strict=True):
        name = method or ""
        number = seen[name] = seen.get(name, -1) + 1
        marker = MARKERS[(MARKERS.index(method_marker(name)) + number) % len(MARKERS)]
        found[way] = Style(strategy_colour(name), marker, DASHES[number % len(DASHES)])
    return found


def method_marker(name: str) -> str:
    """Return a method's marker in every figure: its own, or one of its name."""
    own: str | None = vars(STRATEGIES[name]).get("marker") if name in STRATEGIES else None
    if own is not None:
        return own
    return MARKERS[sha256(f"{_SALT} {name}".encode()).digest()[0] % len(MARKERS)]


def _numbered(i: int) -> Style:
    """Return the style of a way by its number: combinations of colour and dash come late."""
    lap = i // len(PALETTE)
    return Style(
        PALETTE[i % len(PALETTE)],
        MARKERS[(i + lap) % len(MARKERS)],
        DASHES[(i + lap) % len(DASHES)],
    )
