"""What crosses the boundary between a trial and the driver: frozen, plain, small.

A trial yields one :class:`TrialStarted`, one :class:`RoundRecord` per round (round 0 is the
evaluation of the initial model) and, at its end, one :class:`TrialResult`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What YAML and JSON hold, and the words of a command line; pydantic takes no recursive alias."""

Columns = Mapping[str, Sequence[Any]]
"""A table by columns: every value has the same length; a missing number is ``nan``."""


@dataclass(frozen=True)
class LoadSample:
    """The load of one host and its node at one moment, while the host ran work of this trial."""

    time_s: float  # Unix time
    host: str  # name of the client host
    node: str  # Ray node (or host name) that the host lives on
    host_cpu: float  # per cent of one core
    host_rss_mb: float
    node_cpu: float  # per cent of the node
    node_mem: float  # per cent of the node


@dataclass(frozen=True)
class TaskRecord:
    """One client task as the engine saw it: a Flower message run by a ClientApp on a host."""

    node_id: int  # Flower node id = partition id + 1
    message_type: str  # train | evaluate | query...
    host: str
    wall_s: float
    bytes_in: int  # array bytes of the message
    bytes_out: int  # array bytes of the reply
    metrics: Mapping[str, float]  # the reply's scalar metrics
    load: Mapping[
        str, float
    ]  # cpu_s, wall_s, rss_mb, node_cpu, node_mem; empty where the app does not measure
    error: str | None = None  # traceback of a client that raised


@dataclass(frozen=True)
class DataSummary:
    """What the pictures of a data set under a partitioning show."""

    dataset: str
    partition: str
    shift: str
    fingerprint: str
    source: str  # where the data set was found
    class_names: tuple[str, ...]
    label_counts: np.ndarray  # (clients, classes), training examples
    groups: np.ndarray  # (clients,), known group of each client; all 0 without a shift
    examples: Mapping[
        int, tuple[np.ndarray, np.ndarray]
    ]  # group -> images uint8 (n, C, H, W), or other examples, and their targets (n,)
    num_train: int
    num_test: int
    shows: str = "images"  # how examples are drawn
    names: tuple[str, ...] = ()  # of features, channels or symbols
    num_symbols: int = 0  # that examples are written in
    learns_number: bool = False  # and not classes

    @property
    def num_outputs(self) -> int:
        """How many numbers a network gives for an example."""
        return 1 if self.learns_number else len(self.class_names)


@dataclass(frozen=True)
class TrialStarted:
    """The first thing that a trial yields."""

    key: str
    data: DataSummary | None  # None where the trial alone knows its data
    first_round: int = 0  # records of earlier rounds come from a checkpoint
    anew: bool = False  # it begins again, and may take another course than it did before


@dataclass(frozen=True)
class RoundRecord:
    """Everything that one round produced.

    ``clients`` has one row per client that took part, with the columns of
    ``fedsweep.trial.metrics.CLIENT_COLUMNS``. ``assignments`` has one row per client of a clustered
    strategy, with the columns of :func:`fedsweep.trial.metrics.assignment_rows`. ``tasks`` has one
    row per task that ended in it, where there is a virtual clock, with the columns of
    ``fedsweep.pace.ledger.TASK_COLUMNS``.
    """

    round: int
    metrics: Mapping[str, float]  # keys by section, as MLflow shows them: "1_global/acc"
    clients: Columns = field(default_factory=dict)
    assignments: Columns = field(default_factory=dict)
    load: tuple[LoadSample, ...] = ()
    events: tuple[str, ...] = ()  # one line each: lost hosts, failed clients, why the trial stops
    time_s: float = 0.0
    """Unix time of the round's end: logged again it is the same timestamp, and no second row."""
    tasks: Columns = field(default_factory=dict)


@dataclass(frozen=True)
class TrialPaused:
    """The last thing that a trial yields which waits at a rung; its checkpoint is written."""

    round: int


@dataclass(frozen=True)
class TrialResult:
    """The last thing that a trial yields."""

    key: str
    models: Mapping[str, Mapping[str, np.ndarray]]  # "global", "cluster_0", ...: state dicts
    weights_sha256: str  # of all models, in order
    summary: Mapping[str, float]  # final metrics by bare name: acc, client_acc, ari, ...
    confusion: (
        np.ndarray | None
    )  # (classes, classes): true x predicted, clients' models on the central test set
    input_shape: tuple[int, ...]  # of what the models take: C, H, W of images, normalised float32
    stopped: str = ""  # why the trial ended before its last round
    declared: str = ""  # how its metrics are shown, where the catalog has not all: Catalog.declare
    files: Mapping[str, bytes] = field(default_factory=dict)  # what it wrote, by path


@dataclass(frozen=True)
class TrialRow:
    """A trial in a sweep's table; settings and numbers are apart: none hides the other."""

    axes: Mapping[str, str]  # full key -> value, of the axes that apply to it
    metrics: Mapping[str, float]  # final metrics by bare name; none where it did not finish
