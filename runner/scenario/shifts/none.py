"""All clients draw from one distribution."""

from fedsweep.scenario.shift import Shift


class NoShift(Shift):
    """There are no groups; clients may still join later."""
