"""Text of Markov chains: the next symbol is learnt, and how well that can be done is known.

A client writes with the chain of its group, whose rows of transitions are drawn from a Dirichlet
distribution. No predictor has a lower expected cross-entropy than the chain's entropy rate, the
mean of its rows' entropies under its stationary distribution (Cover and Thomas, Elements of
Information Theory, theorem 4.2.4), and what was read before the last symbol helps nobody: the
perplexity that clustered clients can reach is the exponential of that.
"""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_lowercase
from typing import ClassVar

import numpy as np
from pydantic import Field

from fedsweep.scenario.task import ArrayTask, Column, Decoded, Shown
from fedsweep.seeding import derive_seed
from fedsweep.strategies.ranges import CLIENTS, EXAMPLES, LONGEST, SHARE


class Chains(ArrayTask):
    """The next symbol of texts that are drawn, with natural clients in known groups."""

    natural: ClassVar[str] = "client"

    name: str = Field("chains", description="short name")
    clients: int = Field(12, ge=2, le=CLIENTS, description="clients that have a text of their own")
    groups: int = Field(3, ge=1, le=CLIENTS, description="chains; client i has i mod groups")
    symbols: int = Field(12, ge=2, le=26, description="letters of the alphabet")
    concentration: float = Field(
        0.2, ge=1e-3, le=1e3, description="of the Dirichlet rows; less is easier to predict"
    )
    length: int = Field(8, ge=1, le=1000, description="symbols that are read before the next one")
    examples: int = Field(250, ge=5, le=EXAMPLES, description="examples of each client")
    test_fraction: float = Field(
        0.2, ge=SHARE, lt=1, description="share of each client's examples in the central test set"
    )
    draw: int = Field(0, ge=0, le=LONGEST, description="seed of the data, whatever the trial's")

    @property
    def shows(self) -> Shown:
        """How examples are shown."""
        return "text"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that each trial has."""
        return ("perplexity",)

    def groups_by(self, column: str) -> int:
        """Return how many known groups its own clients have."""
        return self.groups if column == self.natural else 1

    def place(self, root: Path | None) -> str:
        """Return how they are made."""
        del root
        return "drawn by its settings (Markov chains)"

    def files(self, root: Path | None) -> Sequence[Path]:
        """Return none: all is drawn."""
        del root
        return ()

    def transitions(self, group: int) -> np.ndarray:
        """Return a chain, float64 (symbols, symbols): how likely each follows each."""
        rng = np.random.default_rng(derive_seed(self.draw, "chains", "group", group))
        return rng.dirichlet([self.concentration] * self.symbols, self.symbols)

    def entropy(self, group: int) -> float:
        """Return a chain's entropy rate, in nats a symbol."""
        rows = self.transitions(group)
        values, vectors = np.linalg.eig(rows.T)
        stationary = np.real(vectors[:, np.argmin(np.abs(values - 1))])
        stationary = stationary / stationary.sum()
        each = -np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1.0)), 0.0).sum(1)
        return float(stationary @ each)

    def read(self, root: Path | None, column: str = "") -> Decoded:
        """Draw the data set."""
        del root
        tested = max(1, round(self.test_fraction * self.examples))
        kept = self.examples - tested
        texts = [self._client(k) for k in range(self.clients)]
        # What is tested on is written last, and shares no symbol with what is trained on.
        train = np.concatenate([text[:kept] for text in texts])
        test = np.concatenate([text[kept:] for text in texts])
        group = np.arange(self.clients) % self.groups
        clients = Column(
            tuple(map(str, range(self.clients))), np.repeat(np.arange(self.clients), kept)
        )
        names = tuple(ascii_lowercase[: self.symbols])
        told = (
            f"{len(train):,} examples of {self.clients} clients to train on, {len(test):,} to test "
            f"on; {self.symbols} symbols, {self.groups} chains"
        )
        x, y = (train[:, :-1], test[:, :-1]), (train[:, -1], test[:, -1])
        targets = [own.astype(np.int64) for own in y]
        return Decoded(
            names,
            (x[0], targets[0], x[1], targets[1]),
            told,
            names=names,
            column=clients if column == self.natural else None,
            groups=(np.repeat(group, kept), np.repeat(group, tested)),
        )

    def _client(self, k: int) -> np.ndarray:
        """Return a client's text cut into examples with what follows, int32 (n, length + 1)."""
        rng = np.random.default_rng(derive_seed(self.draw, "chains", "client", k))
        steps = self.transitions(k % self.groups).cumsum(1)
        draws = rng.random(self.examples * (self.length + 1) + 100)
        text, at = np.empty(len(draws), np.int32), 0
        for i, draw in enumerate(draws):
            at = min(int(np.searchsorted(steps[at], draw)), self.symbols - 1)
            text[i] = at
        return text[100:].reshape(self.examples, -1)  # the first ones are not yet stationary
