"""Classes by a linear model per client: two numbers say how much models and features differ.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks" (FedProx), arXiv:1812.06127,
section 5.1 and appendix C.1: u_k ~ N(0, alpha), W_k and b_k ~ N(u_k, 1), B_k ~ N(0, beta),
v_k ~ N(B_k, 1), x ~ N(v_k, diag(j^-1.2)), y = argmax(W_k x + b_k); client k has
50 + lognormal(4, 2) examples. Deviations: alpha and beta are standard deviations, as in the
authors' code (at 0 and 1 it is the same); with ``groups`` clients of a group share W and b, so that
the true clusters are known; a share of each client's examples is the central test set.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedsweep.scenario.task import ArrayTask, Column, Decoded, counted
from fedsweep.seeding import derive_seed
from fedsweep.strategies.ranges import CLIENTS, LONGEST, SHARE


class Synthetic(ArrayTask):
    """Features and classes that are drawn, with natural clients."""

    natural: ClassVar[str] = "client"

    name: str = Field("synthetic", description="short name")
    clients: int = Field(30, ge=2, le=CLIENTS, description="clients that have a model of their own")
    alpha: float = Field(1.0, ge=0, le=1e3, description="how much the clients' models differ")
    beta: float = Field(1.0, ge=0, le=1e3, description="how much the clients' features differ")
    groups: int = Field(
        0, ge=0, le=CLIENTS, description="groups of clients that share a model; 0: each its own"
    )
    features: int = Field(60, ge=1, le=10_000, description="features of an example")
    classes: int = Field(10, ge=2, le=1000, description="classes")
    test_fraction: float = Field(
        0.2, ge=SHARE, lt=1, description="share of each client's examples in the central test set"
    )
    draw: int = Field(0, ge=0, le=LONGEST, description="seed of the data, whatever the trial's")

    def groups_by(self, column: str) -> int:
        """Return how many known groups its own clients have."""
        return max(self.groups, 1) if column == self.natural else 1

    def place(self, root: Path | None) -> str:
        """Return how they are made."""
        del root
        return "drawn by its settings (arXiv:1812.06127)"

    def files(self, root: Path | None) -> Sequence[Path]:
        """Return none: all is drawn."""
        del root
        return ()

    def read(self, root: Path | None, column: str = "") -> Decoded:
        """Draw the data set."""
        del root
        drawn = [self._client(k) for k in range(self.clients)]
        tested = [max(1, round(self.test_fraction * len(y))) for _, y in drawn]
        group = [k % self.groups if self.groups else 0 for k in range(self.clients)]
        train_y = np.concatenate([y[n:] for (_, y), n in zip(drawn, tested, strict=True)])
        test_y = np.concatenate([y[:n] for (_, y), n in zip(drawn, tested, strict=True)])
        arrays = (
            np.concatenate([x[n:] for (x, _), n in zip(drawn, tested, strict=True)]),
            train_y,
            np.concatenate([x[:n] for (x, _), n in zip(drawn, tested, strict=True)]),
            test_y,
        )
        sizes = [len(y) - n for (_, y), n in zip(drawn, tested, strict=True)]
        names = tuple(map(str, range(self.classes)))
        told = (
            f"{len(train_y):,} examples of {self.clients} clients to train on, {len(test_y):,} to "
            f"test on; {counted(names, train_y)}"
        )
        clients = Column(
            tuple(map(str, range(self.clients))), np.repeat(np.arange(self.clients), sizes)
        )
        return Decoded(
            names,
            arrays,
            told,
            names=tuple(f"x{j + 1}" for j in range(self.features)),
            scaled=(False,) * self.features,
            column=clients if column == self.natural else None,
            groups=(np.repeat(group, sizes), np.repeat(group, tested)) if self.groups else None,
        )

    def _client(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features float32 (n, F) and classes int64 (n,) of a client."""
        own = np.random.default_rng(derive_seed(self.draw, "synthetic", "client", k))
        model = own
        if self.groups:
            group = derive_seed(self.draw, "synthetic", "group", k % self.groups)
            model = np.random.default_rng(group)
        mean = model.normal(0, self.alpha)
        weights = model.normal(mean, 1, (self.features, self.classes))
        bias = model.normal(mean, 1, self.classes)

        count = 50 + int(own.lognormal(4, 2))
        centre = own.normal(own.normal(0, self.beta), 1, self.features)
        spread = np.arange(1, self.features + 1) ** -0.6  # the root of j^-1.2
        x = own.normal(centre, spread, (count, self.features)).astype(np.float32)
        return x, (x @ weights + bias).argmax(1)
