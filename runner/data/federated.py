"""One data set, split among clients and shifted by group: what a client host holds.

Imports NumPy only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsweep.config import RunConfig, TrialConfig
from fedsweep.data.adversary import NOBODY, Adversary
from fedsweep.data.partition import group_partition, split_rows
from fedsweep.data.scaling import Scaling
from fedsweep.data.shift import ClientGroups
from fedsweep.data.sources import ImageData
from fedsweep.records import DataSummary
from fedsweep.seeding import derive_seed

_EXAMPLES = 16  # per group, in the pictures


class Rows(Sequence[np.ndarray]):
    """Row numbers per client in two flat arrays: a million small ones would take 110 MB.

    Parameters
    ----------
    flat : (rows,) int64
        Every client's rows, one client after the other.
    stops : (clients,) int64
        Where each client's rows end.
    """

    def __init__(self, flat: np.ndarray, stops: np.ndarray) -> None:
        self.flat, self.stops = flat, stops

    @classmethod
    def of(cls, rows: Sequence[np.ndarray]) -> "Rows":
        """Join one array per client."""
        if isinstance(rows, Rows):
            return rows
        flat = np.concatenate(rows) if len(rows) else np.empty(0, np.int64)
        return cls(
            flat.astype(np.int64, copy=False), np.cumsum([len(own) for own in rows], dtype=np.int64)
        )

    @property
    def sizes(self) -> np.ndarray:
        """Number of rows of each client, int64 (clients,)."""
        return np.diff(self.stops, prepend=0)

    def __len__(self) -> int:
        return len(self.stops)

    def __getitem__(self, client: Any) -> Any:
        if isinstance(client, slice):
            return [self[i] for i in range(*client.indices(len(self)))]
        index = range(len(self))[client]
        return self.flat[self.stops[index - 1] if index else 0 : self.stops[index]]


@dataclass(frozen=True, eq=False)
class FederatedData:
    """The examples once, and which rows belong to which client.

    Clients' examples are gathered when asked for.
    """

    images: ImageData
    train_rows: Sequence[np.ndarray]  # per client
    eval_rows: Sequence[np.ndarray]  # per client; may be empty
    shift: ClientGroups
    adversary: Adversary = NOBODY
    scaling: Scaling | None = None  # of features and real targets, by the training clients' sums

    def __post_init__(self) -> None:
        object.__setattr__(self, "train_rows", Rows.of(self.train_rows))
        object.__setattr__(self, "eval_rows", Rows.of(self.eval_rows))

    @classmethod
    def build(cls, images: ImageData, cfg: RunConfig) -> "FederatedData":
        """Split and shift a data set as a trial asks.

        Raises
        ------
        DataError
            The partition, the shift or the attack can't be met with this data set.
        """
        cache = Path(cfg.data.cache).expanduser()
        shift = ClientGroups.build(cfg.shift, cfg.num_clients, images.num_classes, cfg.seed)
        for group in range(shift.num_groups):  # what can't be is refused before anybody trains
            shift.apply(images.train_x[:2], images.train_y[:2], group)
        adversary = Adversary.build(cfg.attack, cfg.num_clients, images.num_classes, cfg.seed)
        adversary.check(images.train_x[:2], images.train_y[:2])
        labels = images.strata(images.train_y)
        if cfg.partition.by_column:
            assert images.column is not None
            labels = images.column.codes
        rows = group_partition(cfg.partition, labels, shift, cfg.seed, cache)
        if images.groups is not None and cfg.known_groups > 1:
            of_row = images.groups[0]
            own = np.array([of_row[of_client[0]] for of_client in rows])
            shift = shift.with_known(own, cfg.known_groups)
        splits = [
            split_rows(own, cfg.partition.eval_fraction, derive_seed(cfg.seed, "split", client))
            for client, own in enumerate(rows)
        ]
        train = tuple(train for train, _ in splits)
        scaling = Scaling.of_clients(images, train[: cfg.online(1)])
        return cls(images, train, tuple(held for _, held in splits), shift, adversary, scaling)

    def client(
        self, partition_id: int, split: Literal["train", "eval"], phase: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a client's examples (n, ...) and targets (n,), as seen by its group.

        Images are uint8 (n, C, H, W); features and real targets are scaled. What it trains on has
        the errors of its labels, and an attacker's is what the attack makes of it; what it holds
        out is right.
        """
        rows = (self.train_rows if split == "train" else self.eval_rows)[partition_id]
        group = int(self.groups_in(phase)[partition_id])
        x, y = self.shift.apply(self.images.train_x[rows], self.images.train_y[rows], group)
        if split == "train":
            y = self.shift.mislabel(y, group, partition_id)
            x, y = self.adversary.poison(partition_id, x, y)
        return self._scaled(x, y)

    def _scaled(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return examples and targets as networks take them."""
        if self.scaling is None:
            return x, y
        return self.scaling.examples(x), self.scaling.targets(y)

    def comparable(self, x: np.ndarray) -> np.ndarray:
        """Return examples (n, ...) for what compares raw data: of symbols (n, T) their shares."""
        if not self.images.num_symbols:
            return x
        shares = np.zeros((len(x), self.images.num_symbols))
        np.add.at(shares, (np.arange(len(x))[:, None], x), 1 / x.shape[1])
        return shares

    @property
    def target_unit(self) -> float:
        """What 1 of a scaled target is in the unit of the data."""
        return 1.0 if self.scaling is None else self.scaling.target_std

    def strata(self, y: np.ndarray) -> np.ndarray:
        """Return classes (n,) of targets as :meth:`client` gives them: of real ones, the strata."""
        if self.scaling is None or not self.images.is_real:
            return y
        return self.images.strata(y * self.scaling.target_std + self.scaling.target_mean)

    def phase(self, server_round: int) -> int:
        """Return 0 before the clients' groups change, 1 from that round on."""
        return int(0 < self.shift.drift_round <= server_round)

    def groups_in(self, phase: int) -> np.ndarray:
        """Return the known group of each client in a phase, int64 (clients,)."""
        return self.shift.drifted if phase else self.shift.groups

    def test(
        self,
        group: int,
        start: int | None = None,
        stop: int | None = None,
        *,
        goal: bool = False,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a slice of the central test set as a group sees it, without classes it has not.

        Where the data set knows its clients' groups, it is that of the group's own clients.

        The arrays may be read-only views; they are empty where the slice holds none of the group's
        classes. With ``goal`` they are what the attackers want of the models: their images, and the
        labels that they want.
        """
        x, y = self.images.test_x[start:stop], self.images.test_y[start:stop]
        if self.shift.class_sets:
            has = self.shift.has(y, group)
            x, y = x[has], y[has]
        elif self.shift.known and self.images.groups is not None:
            has = self.images.groups[1][start:stop] == group
            x, y = x[has], y[has]
        x, y = self.shift.apply(x, y, group)
        if goal:
            x, y = self.adversary.goal(x, y)
        return self._scaled(x, y)

    def root(self, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return clean examples of the server's own, drawn evenly from the data set.

        Clients keep theirs: some may have the same ones. They are as group 0 sees them, and fewer
        than ``size`` where the data set has fewer.
        """
        rng = np.random.default_rng(derive_seed(seed, "root"))
        rows = np.sort(rng.permutation(len(self.images.train_y))[:size])
        x, y = self.shift.apply(self.images.train_x[rows], self.images.train_y[rows], 0)
        return self._scaled(x, y)

    @property
    def groups(self) -> np.ndarray:
        """Known group of each client, int64 (clients,)."""
        return self.shift.groups

    @property
    def holds_out(self) -> bool:
        """Whether any client has examples to be evaluated on."""
        return bool(Rows.of(self.eval_rows).sizes.any())

    def num_examples(self) -> np.ndarray:
        """Return the number of training examples of each client, int64 (clients,)."""
        return Rows.of(self.train_rows).sizes

    def told(self) -> tuple[str, ...]:
        """Return what the reader of the results has to know of the split, a line each."""
        used = np.zeros(len(self.images.train_y), bool)
        for rows in (self.train_rows, self.eval_rows):
            used[Rows.of(rows).flat] = True
        if used.all():
            return ()
        left = len(used) - int(used.sum())
        return (f"{left:,} of {len(used):,} training examples are no client's",)

    def label_counts(self) -> np.ndarray:
        """Return training examples by client and class, after the shift, int64 (clients, K).

        An attacker's are counted as they were before it changed them.
        """
        classes = self.images.num_classes
        labels = np.concatenate(
            [
                self.shift.mislabel(
                    self.shift.relabel(self.images.strata(self.images.train_y[rows]), group),
                    int(group),
                    client,
                )
                for client, (rows, group) in enumerate(
                    zip(self.train_rows, self.groups, strict=True)
                )
            ]
        )
        clients = np.repeat(np.arange(len(self.train_rows)), self.num_examples())
        counts = np.bincount(clients * classes + labels, minlength=len(self.train_rows) * classes)
        return counts.reshape(-1, classes)

    def summary(self, cfg: TrialConfig) -> DataSummary:
        """Return what the pictures show.

        A group's examples are drawn by chance from its clients' training rows.
        """
        examples = {}
        for group in range(self.shift.num_groups):
            rows = np.concatenate(
                [own for own, g in zip(self.train_rows, self.groups, strict=True) if g == group]
            )
            rng = np.random.default_rng(derive_seed(cfg.seed, "examples", group))
            drawn = rng.choice(rows, min(_EXAMPLES, len(rows)), replace=False)
            examples[group] = self.shift.apply(
                self.images.train_x[drawn], self.images.train_y[drawn], group
            )
        return DataSummary(
            dataset=self.images.name,
            partition=cfg.partition.name,
            shift=cfg.shift.name,
            fingerprint=self.images.fingerprint,
            source=self.images.source,
            class_names=self.images.class_names,
            label_counts=self.label_counts(),
            groups=self.groups,
            examples=examples,
            num_train=len(self.images.train_y),
            num_test=len(self.images.test_y),
            shows=self.images.shows,
            names=self.images.names,
            num_symbols=self.images.num_symbols,
            learns_number=self.images.is_real,
        )
