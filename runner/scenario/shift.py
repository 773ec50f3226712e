"""What a shift is: how known groups of clients differ, so that the true clusters are known."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from fedsweep.strategies.ranges import CLIENTS, ROUNDS
from fedsweep.strategies.settings import Settings

ClassSets = tuple[tuple[int, ...], ...]


class Shift(Settings):
    """How the clients' data differ in known groups, and over time.

    Client i belongs to group i mod groups. A shift of one's own is a class derived from
    :class:`SeenShift` (groups see examples otherwise) or :class:`GroupedShift` (groups have other
    examples), in a file: its fields are its settings.
    """

    needs: ClassVar[Literal["", "images", "classes"]] = ""
    """What it changes: pixels, classes, or nothing of an example itself."""

    name: str = Field("none", description="the kind of shift")
    newcomers: float = Field(
        0.0, ge=0, lt=1, description="share of the clients, the last ones, that join later"
    )
    join_round: int = Field(2, ge=2, le=ROUNDS, description="first round of the newcomers")

    @property
    def num_groups(self) -> int:
        """How many groups there are: 1 where all clients draw from one distribution."""
        return 1

    @property
    def replicates(self) -> bool:
        """Whether the clients of each group together hold all training examples."""
        return False

    @property
    def deals(self) -> bool:
        """Whether it says which rows a group has, so that a partition splits them in it."""
        return self.replicates or type(self).class_sets is not Shift.class_sets

    @property
    def drifts_in(self) -> int:
        """The round from which on some clients belong to the next group; 0: never."""
        return 0

    @property
    def drifting(self) -> float:
        """The share of each group's clients that move then."""
        return 0.0

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        return {} if self.newcomers else {"join_round": "shift.newcomers=0"}

    def view(self, x: np.ndarray, group: int, seed: int) -> np.ndarray:
        """Return images as a group sees them.

        Parameters
        ----------
        x : np.ndarray
            uint8 (n, C, H, W).
        group : int
            From 0; as a rule group 0 sees them as they are.
        seed : int
            The trial's seed: what is drawn follows from it, the image and the group alone, so that
            it is the same in any slice, order and process.
        """
        del group, seed
        return x

    def permutations(self, num_classes: int, seed: int) -> np.ndarray:
        """Return the class that each class becomes, int64 (groups, classes);
        empty where none does.
        """
        del seed
        return np.empty((0, num_classes), np.int64)

    def class_sets(self, num_classes: int, seed: int) -> ClassSets:
        """Return the classes of each group; empty where every group has all."""
        del num_classes, seed
        return ()

    def mislabel(self, y: np.ndarray, group: int, num_classes: int, seed: int) -> np.ndarray:
        """Return a client's training labels (n,) with the errors that they have.

        Parameters
        ----------
        y : np.ndarray
            int64 (n,): right labels, as its group sees them. They are not to be changed in place.
        group : int
            Of the client.
        num_classes : int
            Labels are below it.
        seed : int
            The client's: what is drawn follows from it alone.
        """
        del group, num_classes, seed
        return y


class GroupedShift(Shift):
    """A shift between groups."""

    groups: int = Field(4, ge=1, le=CLIENTS, description="number of groups")

    @property
    def num_groups(self) -> int:
        """How many groups there are."""
        return self.groups


class SeenShift(GroupedShift):
    """A shift in how a group sees an example, not in which ones it has."""

    needs: ClassVar[Literal["", "images", "classes"]] = "images"

    replicate: bool = Field(
        False, description="the clients of each group together hold all training images (IFCA)"
    )
    drift_round: int = Field(
        0,
        ge=0,
        le=ROUNDS,
        description="from this round on some clients belong to the next group; 0: never",
    )
    drift_fraction: float = Field(
        0.5, ge=0, le=1, description="share of each group's clients that move to the next group"
    )

    @property
    def replicates(self) -> bool:
        """Whether the clients of each group together hold all training examples."""
        return self.replicate

    @property
    def drifts_in(self) -> int:
        """The round from which on some clients belong to the next group; 0: never."""
        return self.drift_round

    @property
    def drifting(self) -> float:
        """The share of each group's clients that move then."""
        return self.drift_fraction

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect beside the others: key -> the setting that is why."""
        unmoved = {} if self.drift_round else {"drift_fraction": "shift.drift_round=0"}
        return super().idle() | unmoved
