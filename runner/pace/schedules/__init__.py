"""The schedules there are: each a file, called as it is."""

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

schedule_of = SCHEDULES.make
