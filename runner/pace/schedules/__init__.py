"""The schedules there are: each a file, called as it is."""

from typing import Any

from fedsweep.pace.schedule import Schedule
from fedsweep.parts.family import Kinds

SCHEDULES: Kinds[Schedule] = Kinds(
    kind="schedule",
    package=__name__,
    entries="fedsweep.schedules",
    default="sync",
    home="SCHEDULES",
    base=Schedule,
    expected="Schedule, with its policies()",
)


def schedule_of(name: str = "sync", **values: Any) -> Schedule:
    """Return a schedule with its settings: see :meth:`Family.make`."""
    found: Schedule = SCHEDULES.make(name, **values)
    return found
