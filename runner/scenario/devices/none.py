"""No devices are simulated: no virtual time passes."""

from fedsweep.scenario.device import Devices


class NoDevices(Devices):
    """There is no clock, and everybody is there always."""
