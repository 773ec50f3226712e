"""A shift in a trial: which client belongs to which group, and what each group sees."""

from dataclasses import dataclass, replace

import numpy as np

from fedsweep.errors import DataError
from fedsweep.scenario.shift import ClassSets, Shift
from fedsweep.seeding import derive_seed


@dataclass(frozen=True, eq=False)
class ClientGroups:
    """The known groups of a trial's clients. After a drift some belong to the next one."""

    shift: Shift
    seed: int
    groups: np.ndarray  # int64 (clients,), group of each client
    drifted: np.ndarray  # int64 (clients,), the same from ``shift.drifts_in`` on
    permutations: np.ndarray  # int64 (groups, classes), what each class becomes; empty without one
    class_sets: ClassSets  # classes per group; empty where every group has all
    num_classes: int = 0
    known: int = 0  # groups that the data set's own clients have; 0 where a shift makes them

    @classmethod
    def build(cls, shift: Shift, num_clients: int, num_classes: int, seed: int) -> "ClientGroups":
        """Return the groups of a trial.

        Raises
        ------
        DataError
            There are more groups than permutations or shares of the classes.
        """
        groups = np.arange(num_clients) % shift.num_groups
        drifted = _drift(groups, shift, seed) if shift.drifts_in else groups
        return cls(
            shift,
            seed,
            groups,
            drifted,
            shift.permutations(num_classes, seed),
            shift.class_sets(num_classes, seed),
            num_classes,
        )

    @property
    def num_groups(self) -> int:
        """How many groups there are: 1 where nothing makes any."""
        return self.known or self.shift.num_groups

    @property
    def drift_round(self) -> int:
        """From this round on ``drifted`` holds in place of ``groups``; 0: never."""
        return self.shift.drifts_in

    def with_known(self, groups: np.ndarray, count: int) -> "ClientGroups":
        """Return them with the groups (clients,) that the data set knows of its clients."""
        return replace(self, groups=groups, drifted=groups, known=count)

    def apply(self, x: np.ndarray, y: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 (n, C, H, W) and labels (n,) as that group sees them."""
        return self.view(x, group), self.relabel(y, group)

    def view(self, x: np.ndarray, group: int) -> np.ndarray:
        """Return images uint8 (n, C, H, W) as that group sees them.

        Raises
        ------
        DataError
            A shift of somebody's own gives something else.
        """
        seen = np.asarray(self.shift.view(x, group, self.seed))
        if seen.shape != x.shape or seen.dtype != x.dtype:
            raise DataError(
                f"shift={self.shift.name}: view() gave {seen.dtype} of shape {seen.shape} for "
                f"{x.dtype} of shape {x.shape}; it has to give images like those that it gets"
            )
        return seen

    def relabel(self, y: np.ndarray, group: int) -> np.ndarray:
        """Return labels (n,) as that group sees them."""
        return self.permutations[group][y] if len(self.permutations) else y

    def mislabel(self, y: np.ndarray, group: int, client: int) -> np.ndarray:
        """Return a client's training labels (n,), which its group sees, with their errors."""
        seed = derive_seed(self.seed, "shift", "labels", client)
        return self.shift.mislabel(y, group, self.num_classes, seed)

    def has(self, y: np.ndarray, group: int) -> np.ndarray:
        """Return which labels (n,) a group has at all, bool (n,)."""
        return np.isin(y, self.class_sets[group]) if self.class_sets else np.ones(len(y), bool)


def _drift(groups: np.ndarray, shift: Shift, seed: int) -> np.ndarray:
    """Return the groups after the drift: the same share of each, by chance, moves to the next.

    If all moved, the same clients would still belong together, and no clustering would have to
    change.
    """
    drifted = groups.copy()
    for group in range(shift.num_groups):
        members = np.flatnonzero(groups == group)
        rng = np.random.default_rng(derive_seed(seed, "shift", "drift", group))
        moving = rng.permutation(members)[: round(shift.drifting * len(members))]
        drifted[moving] = (group + 1) % shift.num_groups
    return drifted
