"""Updates are taken as they come."""

from fedsweep.scenario.defence import Defence


class NoDefence(Defence):
    """Nothing is done."""
