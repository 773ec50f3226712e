"""The shifts there are: each a file, called as it is."""

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

shift_of = SHIFTS.make
