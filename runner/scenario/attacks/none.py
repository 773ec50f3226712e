"""All clients are honest."""

from fedsweep.scenario.attack import Attack


class NoAttack(Attack):
    """Nobody attacks."""
