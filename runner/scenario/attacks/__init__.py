"""The attacks there are: each a file, called as it is."""

from fedsweep.parts.family import Kinds
from fedsweep.scenario.attack import Attack

ATTACKS: Kinds[Attack] = Kinds(
    kind="attack",
    package=__name__,
    entries="fedsweep.attacks",
    default="none",
    home="ATTACKS",
    base=Attack,
    expected="Attacker, with its poison() or forge()",
)

attack_of = ATTACKS.make
