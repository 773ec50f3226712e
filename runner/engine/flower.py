"""What the engine takes of Flower beyond its public names; strategies and apps have their own.

Each thing here, in ``strategies/insides.py`` and in ``runner/app/insides.py`` has a contract test,
run against two releases of Flower by ``make test-flower``
(``tests/contract/test_flower_insides.py``, ``test_apps.py``).

===========================  ====================================================================
what                         why there is no public way
===========================  ====================================================================
``make_message``             a message from its metadata: a host rebuilds what the grid was given
``set_message_id``           a SuperLink numbers messages, and a grid of one's own has none
``identify``                 ``Message(...)`` asks this process who it is
``empty_run``, ``Run``       what a Grid's ``set_run`` takes
``remote_record``,           an ArrayRecord whose arrays stay where they are until they are read
``reference_of, size_of``
``sampling``                 FedAvg lists all nodes, and waits for ever where there are too few
``CLIENT_RAISED, _GONE``     the codes by which Flower's error replies say why
``node_config``              the keys under which a ClientApp finds its partition
``Mod``                      the type of what ``ClientApp(mods=...)`` takes
``quiet``                    the logger that says a line per message
===========================  ====================================================================
"""

import logging
import random
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from flwr.app import Array, ArrayRecord, Message, Metadata, UserConfig
from flwr.app.message.message import make_message
from flwr.clientapp.typing import ClientAppCallable, Mod
from flwr.common.constant import (
    NUM_PARTITIONS_KEY,
    PARTITION_ID_KEY,
    SUPERLINK_NODE_ID,
    ErrorCode,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import fedavg
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsweep.errors import TrialError

if TYPE_CHECKING:
    import ray

__all__ = [
    "CLIENT_GONE",
    "CLIENT_RAISED",
    "Choose",
    "ClientAppCallable",
    "Mod",
    "Run",
    "empty_run",
    "identify",
    "make_message",
    "node_config",
    "quiet",
    "reference_of",
    "remote_record",
    "sampling",
    "set_message_id",
    "size_of",
]

CLIENT_RAISED: int = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
"""Of an error reply: the client's own code raised, or its reply could not be used."""

CLIENT_GONE: int = ErrorCode.CLIENT_APP_CRASHED
"""Of an error reply: what ran the client died with it."""


def quiet() -> None:
    """Leave out what Flower logs about each message; its warnings stay."""
    logging.getLogger("flwr").setLevel(logging.WARNING)


# Who sends what


def empty_run() -> Run:
    """Return the run of a grid that nobody has given one."""
    return Run.create_empty(run_id=1)


def identify(run: Run) -> None:
    """Name this process as the server, as the constructor of ``Message`` asks."""
    TaskIdentity.run_id = run.run_id
    TaskIdentity.task_id = run.primary_task_id if run.primary_task_id is not None else 1
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def set_message_id(message: Message | Metadata, message_id: str) -> None:
    """Number a message; its replies name it by that."""
    metadata = message.metadata if isinstance(message, Message) else message
    metadata.__dict__["_message_id"] = message_id


def node_config(partition: int, num_partitions: int) -> UserConfig:
    """Return what a ClientApp reads of its node: which partition of the data is its own."""
    return {PARTITION_ID_KEY: partition, NUM_PARTITIONS_KEY: num_partitions}


# Arrays that stay where they are


ArrayRef: TypeAlias = "ray.ObjectRef[ArrayRecord] | ArrayRecord"
"""What stands for a record's arrays: where Ray has them, or, in one process, the record itself."""

Fetch = Callable[[ArrayRef], ArrayRecord]


class _RemoteArrays(UserDict[str, Array]):
    """The dictionary inside an ArrayRecord whose arrays are fetched when they are read.

    It keeps none of them, so that a thousand replies read one after the other take the memory of
    the few that ``fetch`` remembers. Once it is changed it holds arrays of its own, and no longer
    stands for the reference.
    """

    def __init__(self, ref: ArrayRef, fetch: Fetch, nbytes: int) -> None:
        self.ref: ArrayRef | None = ref
        self.nbytes = nbytes
        self._fetch = fetch
        self._own: dict[str, Array] = {}

    @property
    def data(self) -> dict[str, Array]:
        """The arrays, fetched now if they are not held here."""
        return self._own if self.ref is None else _arrays_in(self._fetch(self.ref))

    @data.setter
    def data(self, arrays: dict[str, Array]) -> None:
        self.ref, self._own = None, arrays

    def __setitem__(self, key: str, array: Array) -> None:
        self.data = {**self.data, key: array}

    def __delitem__(self, key: str) -> None:
        self.data = {name: array for name, array in self.data.items() if name != key}

    def copy(self) -> Any:
        """Return what a copy of the record holds: the same reference, or arrays of its own."""
        if self.ref is None:
            return dict(self._own)
        return _RemoteArrays(self.ref, self._fetch, self.nbytes)

    def __reduce__(self) -> tuple[object, ...]:
        return dict, (dict(self.data),)


def _arrays_in(record: ArrayRecord) -> Any:
    """Return the mapping in which a record has its arrays."""
    return record.__dict__["_data"]


def remote_record(ref: ArrayRef, fetch: Fetch, nbytes: int) -> ArrayRecord:
    """Return an ArrayRecord of so many bytes that fetches its arrays when they are read.

    Parameters
    ----------
    ref
        What stands for the arrays.
    fetch : callable
        Returns the record that a reference stands for.
    nbytes : int
        Bytes of the arrays.
    """
    record = ArrayRecord()
    record.__dict__["_data"] = _RemoteArrays(ref, fetch, nbytes)
    return record


def reference_of(record: ArrayRecord) -> "ArrayRef | None":
    """Return the reference that a record still stands for; None: its arrays are in this process."""
    arrays = _arrays_in(record)
    return arrays.ref if isinstance(arrays, _RemoteArrays) else None


def size_of(record: ArrayRecord) -> int:
    """Return the bytes of a record's arrays, without fetching them."""
    arrays = _arrays_in(record)
    if isinstance(arrays, _RemoteArrays) and arrays.ref is not None:
        return arrays.nbytes
    return sum(len(array.data) for array in arrays.values())


# How FedAvg samples

Choose = Callable[[Sequence[int], int], Sequence[int]]
"""Of these nodes, so many: those that are asked."""


@contextmanager
def sampling(choose: Choose = random.sample) -> Iterator[None]:
    """Have Flower's strategies ask the nodes that are chosen of the grid's, by chance as a rule.

    Flower lists all nodes twice, a million a round. ``random.sample`` draws the same nodes from a
    range as from a list. Only within :func:`fedsweep.seeding.seeded_globals`, which lets one thread
    in at a time: Flower's module is the process's too.
    """

    def sample_nodes(
        grid: Grid, min_available_nodes: int, sample_size: int
    ) -> tuple[Sequence[int], Sequence[int]]:
        """Do what Flower's does, but refuse at once where it would wait for ever."""
        nodes = grid.get_node_ids()
        assert isinstance(nodes, Sequence)
        if len(nodes) < max(min_available_nodes, sample_size):
            raise TrialError(
                f"the strategy samples {sample_size} of {min_available_nodes} clients or more, but "
                f"there are {len(nodes)}; lower strategy.min_train_nodes, min_evaluate_nodes or "
                "min_available_nodes, or raise num_clients"
            )
        return choose(nodes, sample_size), nodes

    names = vars(fedavg)
    ours = {"sample_nodes": sample_nodes, "list": _Nodes}
    theirs = {name: names[name] for name in ours if name in names}
    names.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del names[name]
        names.update(theirs)


class _Nodes(list[int]):
    """What ``list`` means in the module of Flower's FedAvg meanwhile: a range stays one."""

    def __new__(cls, nodes: Iterable[int]) -> Any:
        """Return the nodes as they are, if they are a range."""
        return nodes if isinstance(nodes, range) else list(nodes)
