"""The shifts there are: each a file, called as it is."""

from typing import Any

from fedsweep.parts.family import Family
from fedsweep.scenario.shift import GroupedShift, SeenShift, Shift


class Shifts(Family[type[Shift]]):
    """Shifts by name; one is its own settings."""

    def __init__(self) -> None:
        super().__init__("shift", str(__package__), "SHIFTS", "fedsweep.shifts", "none")

    def is_part(self, value: object) -> bool:
        """Return whether it is a class of shifts, and no base of others."""
        is_kind = isinstance(value, type) and issubclass(value, Shift)
        return is_kind and value not in (Shift, GroupedShift, SeenShift)

    def expected(self) -> str:
        """Say what a shift is."""
        return "a class derived from fedsweep.scenario.shift.SeenShift or GroupedShift"

    def settings(self, name: str) -> type[Shift]:
        """Return the class itself."""
        return self[name]


SHIFTS = Shifts()


def shift_of(name: str = "none", **values: Any) -> Shift:
    """Return a shift with its settings: see :meth:`Family.make`."""
    found: Shift = SHIFTS.make(name, **values)
    return found
