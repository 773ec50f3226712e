"""The devices there are: each kind a file, called as it is."""

from fedsweep.parts.family import Kinds
from fedsweep.scenario.device import Devices

DEVICES: Kinds[Devices] = Kinds(
    kind="kind of devices",
    package=__name__,
    entries="fedsweep.devices",
    default="none",
    home="DEVICES",
    base=Devices,
    expected="TimedDevices or DrawnDevices, with its table()",
)

devices_of = DEVICES.make
