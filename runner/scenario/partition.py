"""What a partition is: a rule that splits the training set among the clients, and its settings."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from fedsweep.errors import DataError, shown
from fedsweep.seeding import derive_seed
from fedsweep.strategies.settings import Settings

if TYPE_CHECKING:
    from flwr_datasets.partitioner import Partitioner


class Partition(Settings):
    """How the training set is split among the clients.

    A rule of one's own is a class derived from this one, in a file: its fields are its settings,
    and :meth:`parts` says who has what.
    """

    remedy: ClassVar[str] = "lower num_clients"
    """What to change where the rule can't be met."""
    by_number: ClassVar[bool] = False
    """Whether the size or the labels of a part follow from its number."""
    by_column: ClassVar[bool] = False
    """Whether :meth:`parts` gets the codes of a column, and not labels."""
    one_client: ClassVar[bool] = False
    """Whether there is one client, whatever the trial's number of them."""

    name: str = Field("iid", description="the rule")
    eval_fraction: float = Field(
        0.2, ge=0, lt=1, description="share of each client's examples kept for its evaluation"
    )

    @abstractmethod
    def parts(self, labels: np.ndarray, num_clients: int, seed: int) -> Sequence[np.ndarray]:
        """Return the places of each client's examples among the labels.

        Parameters
        ----------
        labels : np.ndarray
            Of the training examples, shuffled: int (N,) from 0 to K - 1, each there.
        num_clients : int
            Number of parts.
        seed : int
            Of all that the rule draws.

        Returns
        -------
        sequence of np.ndarray
            int, an array per client, disjoint and not empty; what is in none is left out.

        Raises
        ------
        ValueError
            The rule can't be met with such labels: see ``remedy``.
        """

    @property
    def goes_by(self) -> str:
        """The column that says whose an example is; the data set's own one if empty."""
        return ""

    @property
    def keeps_values(self) -> bool:
        """Whether each client is one value of the column that the rule goes by."""
        return False

    @property
    def rule(self) -> dict[str, object]:
        """The settings of the rule, without its name and what is held out."""
        left_out = ("name", "eval_fraction")
        return {key: value for key, value in self.canonical().items() if key not in left_out}

    def rows(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        """Return the training rows of each client, in an order fixed by the seed.

        The rows are shuffled by the seed before the rule sees them: rules may take them as they
        come. Parts whose size or labels follow from their number are dealt out by the seed: known
        groups and newcomers go by a client's number, which must not tell its labels or its size.

        Parameters
        ----------
        labels : np.ndarray
            Class of each training example, int (N,); the code of its column where the rule goes
            by one.
        num_clients : int
            Number of clients.
        seed : int
            The trial's seed.

        Returns
        -------
        list[np.ndarray]
            int64 row numbers, one array per client: disjoint, never empty.

        Raises
        ------
        DataError
            There are fewer examples than clients, the rule can't be met, or a rule of one's own
            gives what is no partition.
        """
        total = len(labels)
        if num_clients > total:
            raise DataError(
                f"num_clients={num_clients} is more than the {total} training examples; "
                "lower num_clients or raise dataset.max_train"
            )
        order = _draw(seed, "order").permutation(total)
        classes, codes = np.unique(labels, return_inverse=True)
        try:
            draw = derive_seed(seed, "partition", "draw")
            places = self.parts(codes[order], num_clients, draw)
            rows = _checked(places, order, num_clients)
        except NoPartition as error:
            where = self.part_origin.code.path if self.part_origin else f"partition={self.name}"
            raise DataError(f"{where}: {error}; see docs/own.md") from error
        except (ValueError, ZeroDivisionError) as error:
            given = "".join(f", partition.{key}={value}" for key, value in self.rule.items())
            own = f" ({shown(str(error), 120)})" if self.part_origin else ""
            raise DataError(
                f"partition={self.name}{given} can't split {total} examples of {len(classes)} "
                f"classes among num_clients={num_clients}{own}; {self.remedy}"
            ) from error
        if not self.by_number:
            return rows
        return [rows[part] for part in _draw(seed, "dealt").permutation(num_clients)]


class NoPartition(ValueError):
    """What a rule gives is no partition."""


def _draw(seed: int, what: str) -> np.random.Generator:
    return np.random.default_rng(derive_seed(seed, "partition", what))


def _checked(places: Sequence[np.ndarray], order: np.ndarray, clients: int) -> list[np.ndarray]:
    """Return the rows at places of an order, if these are a partition."""
    if not isinstance(places, Iterable):
        raise NoPartition(f"parts() gave {places!r}; give an array of places for each client")
    given = [np.asarray(part) for part in places]
    for part in given:
        if part.ndim != 1 or (part.size and part.dtype.kind not in "iu"):
            raise NoPartition(
                f"parts() gave {part.dtype} of shape {part.shape} for a client; give the places of "
                "its examples, whole numbers (of a mask np.flatnonzero)"
            )
    parts = [part.astype(np.int64) for part in given]
    if len(parts) != clients:
        raise NoPartition(f"parts() gave {len(parts)} for {clients} clients")
    if not all(map(len, parts)):
        raise ValueError("a client without examples")
    flat = np.concatenate(parts)
    if flat.min() < 0 or flat.max() >= len(order):
        raise NoPartition(f"parts() gave places outside of 0 to {len(order) - 1}")
    if np.bincount(flat).max() > 1:
        raise NoPartition("parts() gave an example to several clients, or twice")
    return [order[part] for part in parts]


class FlowerPartition(Partition):
    """A rule of flwr-datasets."""

    @abstractmethod
    def partitioner(self, total: int, num_clients: int, seed: int) -> "Partitioner":
        """Return flwr-datasets' partitioner for so many examples and clients."""

    def parts(self, labels: np.ndarray, num_clients: int, seed: int) -> list[np.ndarray]:
        """Let the partitioner split labels and places.

        It needs the label column alone, so no example is touched. Its indices are read where it
        keeps them: ``load_partition`` builds a data set per client, seconds for thousands.
        """
        import warnings

        import datasets

        table = {"label": labels, "row": np.arange(len(labels))}
        # Repeated draws, unused classes and divisions by zero are warned of; what matters of it
        # ends in a ValueError.
        with warnings.catch_warnings(action="ignore"):
            partitioner = self.partitioner(len(labels), num_clients, seed)
            partitioner.dataset = datasets.Dataset.from_dict(table).with_format("arrow")
            count = partitioner.num_partitions  # makes the split
            # In the partitioner's order: ShardPartitioner sorts.
            places = partitioner.dataset[:]["row"].to_numpy()
            parts = partitioner._partition_id_to_indices
        return [places[np.asarray(parts[part], np.int64)] for part in range(count)]
