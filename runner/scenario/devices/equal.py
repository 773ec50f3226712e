"""All clients have the same device."""

from fedsweep.scenario.device import EqualDevices


class Equal(EqualDevices):
    """Time is what each task costs, over one rate and one link."""
