"""The shifts there are: each a file, called as it is."""

from typing import Any

from fedsweep.parts.family import Kinds
from fedsweep.scenario.shift import Shift

SHIFTS: Kinds[Shift] = Kinds(
    kind="shift",
    package=__name__,
    entries="fedsweep.shifts",
    default="none",
    home="SHIFTS",
    base=Shift,
    expected="SeenShift or GroupedShift",
)


def shift_of(name: str = "none", **values: Any) -> Shift:
    """Return a shift with its settings: see :meth:`Family.make`."""
    found: Shift = SHIFTS.make(name, **values)
    return found
