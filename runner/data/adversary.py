"""An attack in a trial: who attacks, what attackers train on, what they want of the models."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fedsweep.errors import DataError
from fedsweep.parts.code import check_shape
from fedsweep.scenario.attack import Attack
from fedsweep.scenario.attacks.none import NoAttack
from fedsweep.seeding import derive_seed
from fedsweep.strategies.updates import Rows

Examples = tuple[np.ndarray, np.ndarray]
"""Images uint8 (n, C, H, W), or what another task has, and labels int64 (n,)."""


@dataclass(frozen=True, eq=False)
class Adversary:
    """The attackers of a trial; without any it does nothing."""

    attack: Attack = NoAttack()  # noqa: RUF009  it is frozen
    clients: tuple[int, ...] = ()  # that are attackers, in order
    num_classes: int = 0
    seed: int = 0

    @classmethod
    def build(cls, attack: Attack, num_clients: int, num_classes: int, seed: int) -> "Adversary":
        """Draw the attackers of a trial."""
        return cls(attack, attack.attackers(num_clients, seed), num_classes, seed)

    @cached_property
    def nodes(self) -> frozenset[int]:
        """The node ids of the attackers."""
        return frozenset(client + 1 for client in self.clients)

    @property
    def forges(self) -> bool:
        """Whether attackers send other updates than they trained."""
        return self.attack.at_replies

    @property
    def aims(self) -> bool:
        """Whether it is told what the models should say."""
        return self.attack.aims

    def told(self) -> tuple[str, ...]:
        """Return what the reader of the results has to know, in one line; nothing where nobody."""
        if not self.clients:
            return ()
        some = ", ".join(map(str, self.clients[:20])) + (", ..." if len(self.clients) > 20 else "")
        return (
            f"attack={self.attack.name} by {len(self.clients)} clients: {some}; "
            "what is said of clients is said of the honest ones",
        )

    def check(self, x: np.ndarray, y: np.ndarray) -> None:
        """Refuse what can't be done with a data set, by some of its examples."""
        if self.clients:
            self.poison(self.clients[0], x, y)
        if self.aims:
            self.goal(x, y)

    def poison(self, client: int, x: np.ndarray, y: np.ndarray) -> Examples:
        """Return what a client trains on: an attacker not on what it has.

        Raises
        ------
        DataError
            An attack of somebody's own gives something else than such examples.
        """
        if client + 1 not in self.nodes:
            return x, y
        attack, seed = self.attack, derive_seed(self.seed, "attack", "data", client)
        found = self._checked("poison", lambda: attack.poison(x, y, self.num_classes, seed), x)
        if len(found[1]) != len(y):
            raise DataError(
                f"attack={attack.name}: poison() gave {len(found[1])} examples for {len(y)}; it "
                "has to give as many"
            )
        return found

    def goal(self, x: np.ndarray, y: np.ndarray) -> Examples:
        """Return test examples as attackers want them seen, with the labels that they want.

        Raises
        ------
        DataError
            An attack of somebody's own gives something else than such examples.
        """
        return self._checked("goal", lambda: self.attack.goal(x, y, self.num_classes), x)

    def forge(self, number: int, honest_HP: Rows, own_BP: Rows) -> Rows:
        """Return what the attackers of a round's cohort send in place of their updates, (B, P).

        Raises
        ------
        ValueError
            An attack of somebody's own gives something else.
        """
        seed = derive_seed(self.seed, "attack", "round", number)
        sent_BP = np.asarray(self.attack.forge(honest_HP, own_BP, seed))
        check_shape(self.attack.forge, sent_BP.shape, own_BP.shape, f"updates {own_BP.shape}")
        return sent_BP

    def _checked(self, what: str, gives: Callable[[], Examples], like: np.ndarray) -> Examples:
        """Return examples of the type and shape of those that were given."""
        x, y = map(np.asarray, gives())
        inside = not len(y) or (int(y.min()) >= 0 and int(y.max()) < self.num_classes)
        same = x.dtype == like.dtype and x.shape[1:] == like.shape[1:]
        if not same or len(x) != len(y) or not inside:
            raise DataError(
                f"attack={self.attack.name}: {what}() gave {x.dtype} of shape {x.shape} with "
                f"{len(y)} labels; it has to give {like.dtype} {_called(like)} of "
                f"{like.shape[1:]} and labels below "
                f"{self.num_classes}"
            )
        return x, y


def _called(x: np.ndarray) -> str:
    return "images" if x.dtype == np.uint8 else "examples"


NOBODY = Adversary()
"""No attackers."""
