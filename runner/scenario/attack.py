"""What an attack is: which clients are the attackers', what they do, and its settings.

An attacker acts at its data (``poison``), at what it sends (``forge``), or at both; what it wants
of the models may be told (``goal``), and is then scored. Shapes: n examples, H honest clients and
B attackers in a cohort, P trained parameters.
"""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator

from fedsweep.errors import DataError
from fedsweep.seeding import derive_seed
from fedsweep.strategies.ranges import CLIENTS
from fedsweep.strategies.settings import Settings
from fedsweep.strategies.updates import Rows


class Attack(Settings):
    """What attackers among the clients do; as it stands, there are none."""

    attacks: ClassVar[bool] = False
    """Whether anything is done."""
    needs: ClassVar[Literal["", "images", "classes"]] = ""
    """What it changes: pixels, classes, or nothing of an example itself."""

    name: str = Field("none", description="what attackers among the clients do")

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return {}

    def attackers(self, num_clients: int, seed: int) -> tuple[int, ...]:
        """Return the clients that are attackers, in order."""
        del num_clients, seed
        return ()

    def check_in(self, num_clients: int) -> None:
        """Refuse attackers that can't be, or do nothing.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """

    @property
    def at_data(self) -> bool:
        """Whether attackers train on other examples than they have."""
        return type(self).poison is not Attack.poison

    @property
    def at_replies(self) -> bool:
        """Whether attackers send other updates than they trained."""
        return type(self).forge is not Attack.forge

    @property
    def aims(self) -> bool:
        """Whether it is told what the models should say, so that its success can be scored."""
        return type(self).goal is not Attack.goal

    def poison(
        self, x: np.ndarray, y: np.ndarray, num_classes: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return what an attacker trains on in place of its examples.

        Parameters
        ----------
        x : (n, C, H, W) uint8
            Its images, as its group sees them. They are not to be changed in place.
        y : (n,) int64
            Their labels.
        num_classes : int
            Labels are below it.
        seed : int
            Of what is drawn: other for each attacker, the same in each round.

        Raises
        ------
        DataError
            It can't be done with this data set.
        """
        del num_classes, seed
        return x, y

    def forge(self, honest_HP: Rows, own_BP: Rows, seed: int) -> Rows:
        """Return what the attackers of a cohort send in place of their updates, (B, P).

        Parameters
        ----------
        honest_HP : (H, P)
            The updates of the others, which omniscient attackers know; H may be 0.
        own_BP : (B, P)
            Those that the attackers trained.
        seed : int
            Of what is drawn: other in each round.
        """
        del honest_HP, seed
        return own_BP

    def goal(self, x: np.ndarray, y: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
        """Return test examples as the attackers want them seen, with the labels that they want.

        Those that a model may well label so without an attack are left out.
        """
        del num_classes
        return x, y


class Attacker(Attack):
    """An attack by some of the clients.

    One of one's own is a class derived from this one, in a file: its fields are its settings. It
    overrides :meth:`poison`, :meth:`forge` or both.
    """

    attacks: ClassVar[bool] = True

    fraction: float = Field(0.2, gt=0, lt=1, description="share of the clients that attack")
    clients: tuple[Annotated[int, Field(ge=0, le=CLIENTS - 1)], ...] | None = Field(
        None,
        strict=False,  # a list makes a tuple
        description="which clients attack, such as [0,3], in place of a share that is drawn",
    )

    @field_validator("clients")
    @classmethod
    def _in_order(cls, clients: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return them in one order, each once: neither may make another trial."""
        return None if clients is None else tuple(sorted(set(clients)))

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return super().idle() | ({"fraction": "attack.clients"} if self.clients is not None else {})

    def attackers(self, num_clients: int, seed: int) -> tuple[int, ...]:
        """Return the clients that are attackers, in order.

        They are drawn by the seed alone: other attacks have the same ones, and a larger share has
        those of a smaller one.
        """
        if self.clients is not None:
            return self.clients
        drawn = np.random.default_rng(derive_seed(seed, "attack", "clients")).permutation(
            num_clients
        )
        return tuple(sorted(drawn[: round(self.fraction * num_clients)].tolist()))

    def check_in(self, num_clients: int) -> None:
        """Refuse attackers that are nobody, everybody, or no clients; and those that do nothing.

        Raises
        ------
        ValueError
            In one line: what was given, and what to change.
        """
        if not (self.at_data or self.at_replies):
            raise ValueError(
                f"attack={self.name} overrides neither poison() nor forge(): its attackers would "
                "do nothing; write one of them"
            )
        wrong = [client for client in self.clients or () if client >= num_clients]
        if wrong:
            raise ValueError(
                f"attack.clients has {wrong[0]}, and clients are 0 to {num_clients - 1}; "
                "leave it out or add clients"
            )
        if self.clients == ():
            raise ValueError("attack.clients is empty; name some, or leave it out")
        found = len(self.attackers(num_clients, 0))
        if self.clients and found == num_clients:
            raise ValueError(
                f"attack.clients are all {num_clients} clients, and nobody is left to be "
                "attacked; leave some out"
            )
        if not 0 < found < num_clients:
            told = "no client" if not found else "all of them, and nobody is left to be attacked"
            raise ValueError(
                f"attack.fraction={self.fraction:g} of num_clients={num_clients} is {told}; "
                "change one of them"
            )


def require_classes(name: str, labels: Sequence[int], num_classes: int) -> None:
    """Refuse labels that a data set has not.

    Raises
    ------
    DataError
        One is no class.
    """
    for key, label in zip(("source", "target")[-len(labels) :], labels, strict=True):
        if label >= num_classes:
            raise DataError(
                f"attack={name} with attack.{key}={label}: the data set has classes 0 to "
                f"{num_classes - 1}; set another one"
            )
