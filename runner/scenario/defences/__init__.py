"""The defences there are: each a file, called as it is."""

from fedsweep.parts.family import Kinds
from fedsweep.scenario.defence import Defence

DEFENCES: Kinds[Defence] = Kinds(
    kind="defence",
    package=__name__,
    entries="fedsweep.defences",
    default="none",
    home="DEFENCES",
    base=Defence,
    expected="Defender, with its defend()",
)

defence_of = DEFENCES.make
