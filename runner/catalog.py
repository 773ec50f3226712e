"""The metrics: each is declared here once; whoever logs, shows, compares or watches one asks here.

::

    CATALOG.add(Metric(
        "3_clients/acc_p90", "best 10%", unit="%", better="higher", final="client_acc_p90",
        of=client_values("eval_acc").quantile(0.9), needs=(Need.HELD_OUT,), shown="full",
    ))

From then on it is logged in each evaluated round and at the trial's end, is a column of the
report's tables, and can be watched by ``stop.metric`` and ``halving.metric``, asked of ``best``
and of ``report --target``, and expected in a reproduction. A metric without ``of`` is computed
where its numbers arise (traffic, times, a method's diagnostics) and logged there under its key.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from math import exp, inf, isnan, nan
from typing import Literal, SupportsFloat

import numpy as np
from numpy.typing import NDArray

from fedsweep.errors import ConfigError, unknown
from fedsweep.predictions import CONFIDENCE_UNIT, CONFIDENCES, confusion_of

FINAL = "0_final/"
"""Section of what a trial ended with: each ``Metric.final`` is logged there."""
EPSILON = "1_global/epsilon"
"""What is spent of privacy so far."""
EPSILON_AHEAD = "1_global/epsilon_ahead"
"""What will be spent by the next round in which the trial may end."""
EPSILON_MEAN, EPSILON_MAX = "3_clients/epsilon", "3_clients/epsilon_max"
"""What clients have spent whose own training bears the noise."""
SUM_ERROR, SUM_CLIPPED = "3_clients/sum_error", "3_clients/sum_clipped"
"""What secure aggregation's integers lose of the mean update."""
SUM_SMALLEST, SUM_MISSING = "3_clients/sum_smallest", "3_clients/sum_missing"
"""How many clients the smallest sum is of, and how many are in none."""
ROUND = "5_time/round"
"""Closes the batch of each round: its last value is the last round that was logged whole."""

FACTORS: Mapping[str, float] = {"%": 100.0, "points": 100.0}
"""Unit -> how many of it one is: such a number is logged as a share, others as they are."""


class Need(Enum):
    """What a metric exists under; ``fedsweep.config.trial`` says whether a trial has it."""

    GLOBAL_MODEL = "a global model"
    CLUSTERS = "clusters"
    GROUPS = "known groups of clients"
    HELD_OUT = "clients that are evaluated on what they hold out"
    OWN_TESTED = "clients' own models that are tested"
    ATTACKERS = "attackers among the clients"
    GOAL = "an attack that aims at labels"
    ACCUSES = "a method that leaves replies out"
    TOLD = "clients that tell what they know of their data"
    EPSILON = "noise, of which something can be computed"
    OWN_EPSILON = "clients whose own training bears noise"
    CLASSES = "classes that are learnt"
    SUMS = "secure aggregation"


_SECTIONS: Mapping[str, tuple[Need, ...]] = {
    "0_final": (),
    "1_global": (Need.GLOBAL_MODEL,),
    "2_clusters": (Need.CLUSTERS,),
    "3_clients": (),
    "4_comm": (),
    "5_time": (),
    "6_load": (),
    "7_data": (),
}
"""Section of MLflow's UI -> what all of its metrics need."""
_ONCE = ("0_final", "7_data")
"""Sections of what a trial has once: at its end, and before its first round."""


@dataclass(frozen=True)
class ClassCounts:
    """Predictions by class, as sums that add up over slices, models and clients.

    Parameters
    ----------
    counts : (3, classes) int
        For each class the examples of it, the predictions of it, and those that are both.
    confidences : (3, CONFIDENCES) int
        For each part of [0, 1] the predictions whose confidence, the largest probability, lies in
        it (its upper end is its own), how many of them are right, and the sum of their confidences
        in CONFIDENCE_UNIT.
    """

    counts: NDArray[np.int64]
    confidences: NDArray[np.int64] = field(
        default_factory=lambda: np.zeros((3, CONFIDENCES), np.int64)
    )

    @classmethod
    def of_table(cls, table: NDArray[np.int64]) -> "ClassCounts":
        """Return those of a flat table, (3 classes + 3 CONFIDENCES,)."""
        counts, confidences = np.split(table, [len(table) - 3 * CONFIDENCES])
        return cls(counts.reshape(3, -1), confidences.reshape(3, -1))

    @classmethod
    def of_full_table(cls, table: NDArray[np.int64]) -> "ClassCounts":
        """Return those of a flat table that begins with a confusion matrix."""
        matrix = confusion_of(table)
        counts = np.stack([matrix.sum(1), matrix.sum(0), matrix.diagonal()])
        return cls(counts, table[matrix.size :].reshape(3, -1))

    def balanced_accuracy(self) -> float:
        """Return the mean recall of the classes that there are examples of; nan of no example.

        Source: Brodersen et al. 2010, as scikit-learn computes it.
        """
        true, _, hits = self.counts
        there = true > 0
        return float((hits[there] / true[there]).mean()) if there.any() else nan

    def macro_f1(self) -> float:
        """Return the mean F1 score of the classes with an example or a prediction; nan of none.

        A class that is predicted and never true, or true and never predicted, has 0, as in
        scikit-learn.
        """
        true, predicted, hits = self.counts
        there = true + predicted > 0
        scores = 2 * hits[there] / (true + predicted)[there]
        return float(scores.mean()) if there.any() else nan

    def calibration_error(self) -> float:
        """Return the expected calibration error, 0 to 1; nan of no prediction.

        The mean over predictions of how far, among those of like confidence, the share that is
        right is from the mean confidence. Source: Naeini et al. 2015, Guo et al. 2017.
        """
        predicted, hits, confidences = self.confidences
        total = predicted.sum()
        return float(np.abs(hits - confidences * CONFIDENCE_UNIT).sum() / total) if total else nan


@dataclass(frozen=True)
class RealSums:
    """Predictions of numbers, as sums that add up over slices, models and clients.

    Parameters
    ----------
    sums : (5,) float
        How many there are; their squared and absolute errors; the true numbers, and their squares.
    """

    sums: NDArray[np.float64]

    def mae(self) -> float:
        """Return the mean absolute error, in the unit of the numbers; nan of none."""
        count, _, errors, *_ = self.sums
        return float(errors / count) if count else nan

    def r2(self) -> float:
        """Return the coefficient of determination, as scikit-learn computes it; nan of constants.

        1 is exact, 0 as good as their mean.
        """
        count, squares, _, total, of_squares = self.sums
        spread = of_squares - total**2 / count if count else 0.0
        return float(1 - squares / spread) if spread > 1e-12 * of_squares else nan


Predictions = ClassCounts | RealSums


@dataclass(frozen=True)
class Observed:
    """What a round tells, from which metrics are computed.

    Parameters
    ----------
    clients : mapping
        Name -> a value for each client that has one, float (n,): ``train_loss``; ``eval_loss`` and
        ``eval_acc`` on what clients hold out; ``test_loss`` and ``test_acc`` of clients' own
        models on the central test set, and their ``attack_success``: the share of what attackers
        want that they say. Attackers are none of the clients. What nobody has is left out.
    classes : mapping
        Whose predictions -> what they were: of the ``global`` model on the central test set, once
        for each client as its group sees it; of the clients' ``own`` models there; of these on what
        the clients have ``held_out``. They are there in trials that ask for a metric (``metrics``).
    global_loss : float, optional
        Of the global model on the central test set.
    """

    clients: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    classes: Mapping[str, Predictions] = field(default_factory=dict)
    global_loss: float | None = None


Of = Callable[[Observed], float | None]
"""Computes a metric; None where the round does not tell it."""


@dataclass(frozen=True)
class ClientValues:
    """A statistic over the clients' values of a name of :class:`Observed`: all count alike."""

    name: str

    def mean(self) -> Of:
        """Return the mean."""
        return self._over(np.mean)

    def std(self) -> Of:
        """Return the standard deviation (over n)."""
        return self._over(np.std)

    def min(self) -> Of:
        """Return the smallest."""
        return self._over(np.min)

    def quantile(self, share: float) -> Of:
        """Return the value below which a share of the clients lies, linearly interpolated."""
        return self._over(lambda values: np.quantile(values, share))

    def jain(self) -> Of:
        """Return Jain's index of fairness: see :func:`jain`."""
        return self._over(jain)

    def _over(self, statistic: Callable[[NDArray[np.float64]], SupportsFloat]) -> Of:
        def computed(observed: Observed) -> float | None:
            values = observed.clients.get(self.name)
            return None if values is None else float(statistic(values))

        return computed


def client_values(name: str) -> ClientValues:
    """Return what is computed over the clients' values of this name."""
    return ClientValues(name)


def class_counts(whose: str, score: Callable[[ClassCounts], float]) -> Of:
    """Return what is computed of predictions by class, summed over whose they are."""

    def computed(observed: Observed) -> float | None:
        counts = observed.classes.get(whose)
        return score(counts) if isinstance(counts, ClassCounts) else None

    return computed


def real_sums(whose: str, score: Callable[[RealSums], float]) -> Of:
    """Return what is computed of predicted numbers, summed over whose they are."""

    def computed(observed: Observed) -> float | None:
        sums = observed.classes.get(whose)
        return score(sums) if isinstance(sums, RealSums) else None

    return computed


def jain(values: NDArray[np.float64]) -> float:
    """Return Jain's index of fairness: 1 if all are equal, 1 / n if one has it all; nan of zeros.

    Source: Jain, Chiu and Hawe 1984, (sum x)^2 / (n sum x^2).
    """
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares else nan


def perplexity(loss: float | None) -> float | None:
    """Return the exponential of a mean cross-entropy; what is too large for a float is inf."""
    if loss is None:
        return None
    return exp(loss) if isnan(loss) or loss < 700 else inf


def client_perplexity(name: str) -> Of:
    """Return the perplexity of the mean of the clients' losses of this name."""
    mean = client_values(name).mean()
    return lambda observed: perplexity(mean(observed))


@dataclass(frozen=True)
class Metric:
    """What there is to say about a metric.

    Parameters
    ----------
    key : str
        As it is logged: a section of MLflow's UI, and a name. ``*`` stands for a number
        (``2_clusters/c*_acc``). One in ``0_final`` has no value in rounds.
    name : str
        What people call it: with the unit it is the heading of its column.
    unit : str
        ``%`` is logged as a share.
    better : "higher" | "lower" | ""
        Which is better; empty: neither.
    decimals : int
        Where it is read.
    final : str
        The name of a trial's last value, in ``0_final``, tables and ``best``; empty: it has none.
    of : callable, optional
        Computes it from a round.
    needs : tuple of Need
        What it exists under, beside what its section needs.
    on_request : str
        The name by which ``metrics`` asks for it; empty: every trial has it.
    follows : "learning" | "servers" | "clock"
        What decides its value. What follows the learning repeats to the bit; who serves a cluster
        may follow the measured load, and so differ from run to run as the clock's times do.
    shown : "table" | "full" | "servers" | ""
        In which tables: all; those of a full report; those that compare settings of servers; none.
    ranked : bool
        Whether tables mark the row that is clearly the best, and figures set it against an axis.
    over_seeds : "all" | "reached"
        Trials that the mean of a cell is over. With ``all`` one that is nan makes it nan, since it
        diverged; with ``reached`` nan says that a trial has none, and it is left out.
    curve : str
        Its figure over rounds; of metrics with the same curve a trial's is the first that it has.
    label : str
        Its name in figures, where that is another.
    live : str
        Its name in the line that a round prints; empty: it is not there.
    foreign : bool
        Whether it is a Flower app's, of which the store tells: see :meth:`Catalog.declare`.
    """

    key: str
    name: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    decimals: int = 1
    final: str = ""
    of: Of | None = None
    needs: tuple[Need, ...] = ()
    on_request: str = ""
    follows: Literal["learning", "servers", "clock"] = "learning"
    shown: Literal["table", "full", "servers", ""] = ""
    ranked: bool = False
    over_seeds: Literal["all", "reached"] = "all"
    curve: str = ""
    label: str = ""
    live: str = ""
    foreign: bool = False

    @property
    def section(self) -> str:
        """The section of MLflow's UI."""
        return self.key.partition("/")[0]

    @property
    def all_needs(self) -> tuple[Need, ...]:
        """What it exists under."""
        return _SECTIONS[self.section] + self.needs

    @property
    def factor(self) -> float:
        """How many of its unit one is."""
        return FACTORS.get(self.unit, 1.0)

    @property
    def heading(self) -> str:
        """The heading of its column."""
        return _with_unit(self.name, self.unit)

    @property
    def axis_label(self) -> str:
        """What stands at its axis in a figure."""
        return _with_unit(self.label or self.name, self.unit)

    @property
    def in_rounds(self) -> bool:
        """Whether rounds have it, and not a trial's end alone."""
        return self.section != "0_final"

    @property
    def watchable(self) -> bool:
        """Whether a rule may watch it: it changes from round to round, and not with the machine."""
        return self.section not in _ONCE and self.follows != "clock"

    @property
    def sign(self) -> float:
        """-1 where lower is better, else 1: more of ``sign`` times the value is better."""
        return -1.0 if self.better == "lower" else 1.0

    def told(self, value: float) -> str:
        """Return a value as it is read, in its unit."""
        return f"{value * self.factor:.{self.decimals}f}"


def _with_unit(name: str, unit: str) -> str:
    return f"{name} ({unit})" if unit else name


class Catalog:
    """The metrics there are, in the order of the tables' columns.

    Parameters
    ----------
    metrics : iterable of Metric
        The first ones.
    """

    def __init__(self, metrics: Iterable[Metric] = ()) -> None:
        self._metrics: dict[str, Metric] = {}
        for metric in metrics:
            self.add(metric)

    def add(self, metric: Metric) -> Metric:
        """Declare a metric, and return it.

        Raises
        ------
        ConfigError
            Its key has no section, or its key or its final name is another's.
        """
        section, _, name = metric.key.partition("/")
        if section not in _SECTIONS or not re.fullmatch(r"[\w.*-]+", name):
            raise ConfigError(
                f"metric '{metric.key}' needs a key of a section and a name, such as "
                f"3_clients/{name or 'mine'}; sections: {', '.join(_SECTIONS)}"
            )
        if metric.key in self._metrics:
            raise ConfigError(f"metric '{metric.key}' is declared already; give it another name")
        if metric.final and metric.final in self.finals:
            other = self.finals[metric.final].key
            raise ConfigError(
                f"metric '{metric.key}' has the final name '{metric.final}' of {other}; give it "
                "another one"
            )
        self._metrics[metric.key] = metric
        return metric

    def put(self, metrics: Sequence[Metric]) -> None:
        """Declare the metrics of one request, in place of those that it had.

        Raises
        ------
        ConfigError
            As :meth:`add`; then it has those that it had.
        """
        before = dict(self._metrics)
        asked = {metric.on_request for metric in metrics}
        self._metrics = {k: m for k, m in before.items() if m.on_request not in asked - {""}}
        try:
            for metric in metrics:
                self.add(metric)
        except ConfigError:
            self._metrics = before
            raise

    def declare(self, told: str) -> None:
        """Declare the metrics of a Flower app, in place of those of the same names.

        Parameters
        ----------
        told : str
            JSON: the name of each, and which is better; empty for none.

        Raises
        ------
        ConfigError
            One is called as a metric of this project.
        ValueError, TypeError, AttributeError
            It is no such JSON.
        """
        for name, better in (json.loads(told) if told else {}).items():
            metric = of_app(name, better)
            if (there := self._metrics.get(metric.key)) is not None and there.foreign:
                self.remove(metric.key)
            self.add(metric)

    def remove(self, key: str) -> None:
        """Take a declaration back."""
        del self._metrics[key]

    def __iter__(self) -> Iterator[Metric]:
        return iter(list(self._metrics.values()))

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def get(self, key: str) -> Metric | None:
        """Return the metric that is logged under a key; None where none is declared."""
        found = None if "*" in key else self._metrics.get(key)
        return found or next((metric for metric in self if _fits(metric.key, key)), None)

    def __getitem__(self, key: str) -> Metric:
        """Return the metric that rounds log under a key.

        Raises
        ------
        ConfigError
            There is none; the nearest one is named.
        """
        metric = self.get(key)
        if metric is None or not metric.in_rounds:
            keys = [metric.key for metric in self if metric.in_rounds]
            raise ConfigError(unknown("metric", key, keys, _beside(key, keys)))
        return metric

    def watched(self, key: str) -> Metric:
        """Return a metric that a rule may watch.

        Raises
        ------
        ConfigError
            There is none, or it is a time or a load, by which no trial would end alike twice.
        """
        metric = self.get(key)
        if metric and metric.follows == "clock":
            raise ConfigError(
                f"metric '{key}' is measured on the machine, and differs from run to run; take "
                "another one"
            )
        if metric is None or not metric.watchable:
            keys = [metric.key for metric in self if metric.watchable]
            raise ConfigError(unknown("metric", key, keys, _beside(key, keys)))
        return metric

    def place(self, key: str) -> int:
        """Return where a key that rounds log stands among all; what nobody declared comes last."""
        metric, keys = self.get(key), list(self._metrics)
        return keys.index(metric.key) if metric else len(keys)

    @property
    def finals(self) -> dict[str, Metric]:
        """Metrics of a trial's end, by their names there."""
        return {metric.final: metric for metric in self if metric.final}

    def final(self, name: str) -> Metric:
        """Return a metric by its name at a trial's end; one not declared is shown as it is."""
        return self.finals.get(name) or Metric(f"{FINAL}{name}", name, decimals=4, final=name)

    @property
    def tabled(self) -> list[str]:
        """Names at a trial's end that stand in tables, in their order."""
        return [name for name, metric in self.finals.items() if metric.shown]

    @property
    def ranked(self) -> list[str]:
        """Names at a trial's end by which rows are compared."""
        return [name for name, metric in self.finals.items() if metric.ranked]

    @property
    def curves(self) -> dict[str, list[Metric]]:
        """Figures over rounds: name -> metrics, of which it shows the first that there is."""
        found: dict[str, list[Metric]] = {}
        for metric in self:
            if metric.curve:
                found.setdefault(metric.curve, []).append(metric)
        return found

    def follows(self, key: str) -> str:
        """Return what decides a key's values, of rounds or of a trial's end; else the learning."""
        name = key.removeprefix(FINAL)
        metric = self.finals.get(name) if name != key else self.get(key)
        return metric.follows if metric else "learning"

    @property
    def on_request(self) -> list[str]:
        """Names of metrics that a trial has only if it asks for them."""
        return list(dict.fromkeys(metric.on_request for metric in self if metric.on_request))

    def computed(self, observed: Observed, asked: Collection[str] = ()) -> dict[str, float]:
        """Return what is computed of a round, by key; what the round does not tell is left out.

        Parameters
        ----------
        observed : Observed
            What the round tells.
        asked : collection of str
            Metrics beside those of every trial, by the names under which they are asked for.
        """
        of = {m.key: m.of for m in self if m.of and (not m.on_request or m.on_request in asked)}
        found = {key: compute(observed) for key, compute in of.items()}
        return {key: value for key, value in found.items() if value is not None}

    def summary(self, last: Mapping[str, float]) -> dict[str, float]:
        """Return a trial's final values by their names, from the metrics of its last round."""
        found = ((name, last.get(metric.key)) for name, metric in self.finals.items())
        return {name: value for name, value in found if value is not None}


SERVER_METRIC = "server"
"""What the names of metrics begin with that an app's server measures itself."""


def of_app(name: str, better: Literal["higher", "lower", ""] = "") -> Metric:
    """Return a metric of a Flower app, which is called after the messages that it comes with.

    ``evaluate.accuracy`` is in replies to ``evaluate`` messages, ``server.accuracy`` of the server.
    """
    section = "1_global" if name.startswith(f"{SERVER_METRIC}.") else "3_clients"
    return Metric(
        f"{section}/{name}",
        name,
        better=better,
        decimals=4,
        final=name,
        shown="full" if name.startswith("train.") and not better else "table",
        ranked=bool(better),
        curve=name,
        foreign=True,
    )


def _beside(key: str, keys: Iterable[str]) -> list[str]:
    """Return those of some keys that are of a key's section."""
    return [other for other in keys if other.startswith(f"{key.partition('/')[0]}/")]


def _fits(pattern: str, key: str) -> bool:
    """Return whether a key is one of a pattern's, whose stars are numbers."""
    return "*" in pattern and bool(re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), key))


_HELD_OUT, _OWN, _GROUPS = (Need.HELD_OUT,), (Need.OWN_TESTED,), (Need.GROUPS,)
_ATTACKERS = (Need.ATTACKERS,)
_CLASSES = (Need.CLASSES,)
_SCORED, _TESTED = _HELD_OUT + _CLASSES, _OWN + _CLASSES


def by_class(
    name: str,
    title: str,
    score: Callable[[ClassCounts], float] | None,
    unit: str = "%",
    better: Literal["higher", "lower", ""] = "higher",
) -> list[Metric]:
    """Return the metrics of a score of predictions by class, which ``metrics=[name]`` asks for.

    It is that of the clients' models on what they hold out and on the central test set, and of the
    global model there. Without ``score`` they are read, and not computed.
    """
    computed = partial(class_counts, score=score) if score else None
    return _of_three(name, title, computed, unit, better, 1 if unit == "%" else 3, _CLASSES, "full")


def by_number(
    name: str, title: str, score: Callable[[RealSums], float], better: Literal["higher", "lower"]
) -> list[Metric]:
    """Return the metrics of a score of predicted numbers, which each trial that learns some has."""
    return _of_three(name, title, partial(real_sums, score=score), "", better, 3, (), "table")


def _of_three(
    name: str,
    title: str,
    computed: Callable[[str], Of] | None,
    unit: str,
    better: Literal["higher", "lower", ""],
    decimals: int,
    needs: tuple[Need, ...],
    shown: Literal["table", "full"],
) -> list[Metric]:
    """Return a score of what clients hold out, of their models' and of the global model's tests."""

    def metric(key: str, whose: str, told: str, of: str, more: tuple[Need, ...]) -> Metric:
        ranked = of != "own"
        return Metric(
            key, f"{told} {title}", unit, better, decimals, f"{whose}{name}",
            computed(of) if computed else None, (*more, *needs), name, shown=shown, ranked=ranked,
            curve=name if ranked else "",
        )  # fmt: skip

    return [
        metric(f"3_clients/{name}", "client_", "client", "held_out", _HELD_OUT),
        metric(f"3_clients/test_{name}", "client_test_", "client test", "own", _OWN),
        metric(f"1_global/{name}", "", "global", "global", ()),
    ]


CATALOG = Catalog([
    # Accuracies and losses: of the clients' own models on what they hold out and on the central
    # test set, and of the global model on the latter.
    Metric("3_clients/acc", "client accuracy", "%", "higher", final="client_acc", needs=_SCORED,
           of=client_values("eval_acc").mean(), shown="table", ranked=True, curve="acc",
           label="mean client accuracy", live="clients"),
    Metric("3_clients/test_acc", "client test accuracy", "%", "higher", final="client_test_acc",
           needs=_TESTED, of=client_values("test_acc").mean(), shown="table"),
    Metric("1_global/acc", "global accuracy", "%", "higher", final="acc", needs=_CLASSES,
           shown="table", ranked=True, curve="acc", live="acc"),
    Metric("3_clients/acc_p10", "worst 10%", "%", "higher", final="client_acc_p10", needs=_SCORED,
           of=client_values("eval_acc").quantile(0.1), shown="full"),
    Metric("3_clients/acc_min", "worst client", "%", "higher", final="client_acc_min",
           needs=_SCORED, of=client_values("eval_acc").min(), shown="full"),
    Metric("3_clients/acc_jain", "Jain's index", "", "higher", 3, final="client_acc_jain",
           needs=_SCORED, of=client_values("eval_acc").jain(), shown="full"),
    Metric("3_clients/acc_std", "deviation of client accuracies", "%", "lower", needs=_SCORED,
           of=client_values("eval_acc").std()),
    Metric("3_clients/test_acc_p10", "worst 10% on the test set", "%", "higher", needs=_TESTED,
           of=client_values("test_acc").quantile(0.1)),
    Metric("3_clients/test_acc_min", "worst client on the test set", "%", "higher", needs=_TESTED,
           of=client_values("test_acc").min()),
    # Of attackers: what they reach, and whether they are found. All else that is said of clients is
    # said of the honest ones.
    Metric("1_global/attack_success", "attack success", "%", "lower", final="attack_success",
           needs=(Need.GOAL,), shown="table", curve="attack_success", live="attack"),
    Metric("3_clients/attack_success", "attack success on clients", "%", "lower",
           final="client_attack_success", needs=(Need.GOAL, Need.OWN_TESTED),
           of=client_values("attack_success").mean(), shown="table", curve="attack_success"),
    Metric("3_clients/attackers", "attackers whose replies were used", "", "lower", 0,
           needs=_ATTACKERS),
    Metric("3_clients/attackers_recall", "attackers left out", "%", "higher",
           final="attackers_recall", needs=(*_ATTACKERS, Need.ACCUSES), shown="full"),
    Metric("3_clients/attackers_precision", "attackers among those left out", "%", "higher",
           final="attackers_precision", needs=(*_ATTACKERS, Need.ACCUSES), shown="full"),
    Metric("2_clusters/attackers_ari", "ARI of attackers", "", "", 2, final="attackers_ari",
           needs=_ATTACKERS, shown="full", label="agreement of clusters with who attacks (ARI)"),
    Metric("2_clusters/attackers_apart", "attackers in clusters of their own", "%", "higher",
           final="attackers_apart", needs=_ATTACKERS, shown="full"),
    Metric("2_clusters/captured", "honest clients in captured clusters", "%", "lower",
           final="captured", needs=_ATTACKERS, shown="full"),
    # By class: all classes count alike, however few examples they have.
    *by_class("balanced_acc", "balanced accuracy", ClassCounts.balanced_accuracy),
    *by_class("macro_f1", "macro F1", ClassCounts.macro_f1),
    *by_class("ece", "calibration error", ClassCounts.calibration_error, better="lower"),
    # Of numbers that are learnt.
    *by_number("r2", "R2", RealSums.r2, "higher"),
    *by_number("mae", "mean absolute error", RealSums.mae, "lower"),
    # Of symbols that follow others.
    Metric("3_clients/perplexity", "client perplexity", "", "lower", 2, final="client_perplexity",
           of=client_perplexity("eval_loss"), needs=_HELD_OUT, on_request="perplexity",
           shown="table", ranked=True, curve="perplexity"),
    Metric("3_clients/test_perplexity", "client test perplexity", "", "lower", 2,
           final="client_test_perplexity", of=client_perplexity("test_loss"), needs=_OWN,
           on_request="perplexity", shown="table"),
    Metric("1_global/perplexity", "global perplexity", "", "lower", 2, final="perplexity",
           of=lambda observed: perplexity(observed.global_loss), on_request="perplexity",
           shown="table", ranked=True, curve="perplexity"),
    Metric("1_global/loss", "global loss", "nats", "lower", 3, curve="loss", live="loss"),
    Metric("3_clients/train_loss", "training loss", "nats", "lower", 3,
           needs=(Need.TOLD,), of=client_values("train_loss").mean()),
    Metric("3_clients/loss", "client loss", "nats", "lower", 3, needs=_HELD_OUT,
           of=client_values("eval_loss").mean(), curve="loss", label="mean client loss"),
    Metric("3_clients/test_loss", "client test loss", "nats", "lower", 3, needs=_OWN,
           of=client_values("test_loss").mean()),
    # Clusters: against the known groups, how they stand, and each of the first ones.
    Metric("2_clusters/ari", "ARI", "", "higher", 2, final="ari", needs=_GROUPS, shown="table",
           ranked=True, label="agreement with the true groups (ARI)", live="ari"),
    Metric("2_clusters/ami", "AMI", "", "higher", 2, final="ami", needs=_GROUPS, shown="full"),
    Metric("2_clusters/matched", "matched", "%", "higher", final="matched", needs=_GROUPS,
           shown="full"),
    Metric("2_clusters/count", "clusters found", final="clusters", shown="full"),
    Metric("2_clusters/clusters", "clusters that the method tells", decimals=0),
    Metric("2_clusters/churn", "clients that changed their cluster", "", "lower", 0),
    Metric("2_clusters/stable_since", "stable since round", "", "lower", final="stable_since",
           shown="full"),
    Metric("5_time/clustering_total_s", "clustering", "s", "lower", 3, final="clustering_s",
           follows="clock", shown="full"),
    Metric("2_clusters/silhouette", "silhouette", "", "higher", 2, final="silhouette"),
    Metric("2_clusters/gate_p", "p-value of the gate", decimals=3),
    Metric("2_clusters/frozen", "whether the clusters are frozen", decimals=0),
    Metric("2_clusters/largest_share", "mean of the largest shares", decimals=2),
    Metric("2_clusters/c*_size", "clients of a cluster", decimals=0),
    Metric("2_clusters/c*_acc", "accuracy of a cluster", "%", "higher", needs=_CLASSES),
    Metric("2_clusters/c*_loss", "loss of a cluster", "nats", "lower", 3),
    # Clients that serve a cluster.
    Metric("2_clusters/handovers", "handovers", "", "lower", final="handovers", follows="servers",
           shown="servers"),
    Metric("2_clusters/server_tenure", "tenure", "rounds", "higher", final="server_tenure",
           follows="servers", shown="servers"),
    Metric("2_clusters/server_gini", "servers' Gini", "", "lower", 2, final="server_gini",
           follows="servers", shown="servers"),
    Metric("2_clusters/server_regret", "regret", "", "lower", 3, final="server_regret",
           follows="servers", shown="servers"),
    Metric("2_clusters/server_spearman", "load-examples Spearman", "", "", 2,
           final="server_spearman", follows="servers", shown="servers"),
    # What it took.
    Metric(EPSILON, "epsilon", "", "lower", 2, final="epsilon", needs=(Need.EPSILON,),
           shown="table", live="epsilon"),
    Metric(EPSILON_AHEAD, "epsilon at the next evaluation", "", "lower", 2, needs=(Need.EPSILON,)),
    Metric(EPSILON_MEAN, "epsilon of a client", "", "lower", 2, final="client_epsilon",
           needs=(Need.OWN_EPSILON,), shown="full"),
    Metric(EPSILON_MAX, "epsilon of the worst client", "", "lower", 2,
           final="client_epsilon_max", needs=(Need.OWN_EPSILON,), shown="table"),
    # Of secure aggregation: what its integers lose, over the length of the mean update.
    Metric(SUM_ERROR, "rounding of the mean update", "%", "lower", 4, final="sum_error",
           needs=(Need.SUMS,), shown="full"),
    Metric(SUM_CLIPPED, "numbers that were cut off", "%", "lower", 4, final="sum_clipped",
           needs=(Need.SUMS,), shown="full"),
    Metric(SUM_SMALLEST, "clients in the smallest sum", "", "higher", 0, needs=(Need.SUMS,)),
    Metric(SUM_MISSING, "clients that were asked and are in no sum", "", "lower", 0,
           needs=(Need.SUMS,)),
    Metric("0_final/acc_at_epsilon", "accuracy within epsilon", "%", "higher",
           final="acc_at_epsilon", shown="table", over_seeds="reached"),
    Metric("0_final/rounds_to_target", "rounds to target", "", "lower", final="rounds_to_target",
           shown="table", over_seeds="reached"),
    Metric("0_final/mb_to_target", "MB to target", "", "lower", final="mb_to_target", shown="table",
           over_seeds="reached"),
    Metric("0_final/virtual_s_to_target", "virtual time to target", "s", "lower", 1,
           final="virtual_s_to_target", shown="table", over_seeds="reached"),
    # Of methods whose settings were searched for, on the same fresh seeds: docs/tuning.md.
    Metric("0_final/tuning_default", "at defaults", "%", "higher", final="tuning_default",
           shown="table"),
    Metric("0_final/tuning_gain", "gain of tuning", "points", "higher", final="tuning_gain",
           shown="table"),
    Metric("0_final/tuning_cost", "cost of tuning", "", "lower", 0, final="tuning_cost",
           shown="table"),
    Metric("0_final/wall_s", "time", "s", "lower", final="wall_s", follows="clock", shown="table",
           label="wall time"),
    Metric("0_final/rounds", "rounds", decimals=0, final="rounds"),
    Metric("4_comm/mb_total", "client traffic so far", "MiB", "lower", final="mb_total"),
    Metric("4_comm/mb_down", "to the clients", "MiB", "lower"),
    Metric("4_comm/mb_up", "from the clients", "MiB", "lower"),
    Metric("4_comm/mb_clustering", "queries for the clustering", "MiB", "lower"),
    Metric("4_comm/mb_to_servers", "to clusters' servers", "MiB", "lower"),
    Metric("4_comm/mb_client_server", "between clients and their servers", "MiB", "lower",
           follows="servers"),
    Metric("4_comm/mb_client_global", "between clients and the global server", "MiB", "lower"),
    Metric("4_comm/mb_server_global", "between servers and the global one", "MiB", "lower"),
    Metric("4_comm/mb_broadcast", "several models to each client", "MiB", "lower"),
    Metric("5_time/round_s", "round", "s", "lower", 3, follows="clock"),
    Metric("5_time/train_s", "training", "s", "lower", 3, follows="clock"),
    Metric("5_time/aggregate_s", "aggregation", "s", "lower", 3, follows="clock"),
    Metric("5_time/evaluate_s", "evaluation", "s", "lower", 3, follows="clock"),
    Metric("5_time/clustering_s", "clustering in the round", "s", "lower", 3, follows="clock"),
    # In virtual time, where there are devices: it repeats to the bit.
    Metric("5_time/virtual_s", "virtual time", "s", "lower", 1, final="virtual_s", shown="full"),
    Metric("5_time/virtual_round_s", "virtual time of a round", "s", "lower"),
    Metric("5_time/joules", "energy of the clients' computing", "J", "lower", final="joules"),
    Metric("3_clients/dropped", "clients whose work was thrown away", "", "lower", 0),
    Metric("3_clients/lost", "clients that vanished", "", "lower", 0),
    Metric("3_clients/wasted", "wasted work", "%", "lower", final="wasted", shown="full"),
    Metric("3_clients/staleness", "staleness", "models", "lower", final="staleness",
           shown="full"),
    Metric("3_clients/staleness_p90", "90th percentile of staleness", "models", "lower"),
    Metric("3_clients/participation_gini", "Gini of participation", "", "lower", 2,
           final="participation_gini", shown="full"),
    Metric(ROUND, "round that was logged whole", decimals=0, follows="clock"),
    Metric("6_load/cpu_s", "CPU time of training", "s", "lower", follows="clock"),
    Metric("6_load/rss_mb_max", "peak memory of a host", "MB", "lower", follows="clock"),
    Metric("6_load/node_cpu", "CPU load of the nodes", "per cent", follows="clock"),
    Metric("6_load/node_mem", "memory in use on the nodes", "per cent", follows="clock"),
    Metric("6_load/failed_tasks", "tasks that failed", "", "lower", 0, follows="clock"),
    # Who took part, and what the data are.
    Metric("3_clients/asked", "clients asked to train", decimals=0),
    Metric("3_clients/trained", "clients whose replies were used", "", "higher", 0),
    Metric("3_clients/nonfinite", "clients with a loss that is no number", "", "lower", 0),
    Metric("3_clients/without_eval", "clients that hold out nothing", decimals=0),
    Metric("3_clients/without_test", "clients whose model was not tested", decimals=0),
    Metric("7_data/js_mean", "mean Jensen-Shannon divergence of labels", "bits", decimals=3),
    Metric("7_data/js_max", "largest Jensen-Shannon divergence of labels", "bits", decimals=3),
    Metric("7_data/emd_mean", "mean earth mover's distance of labels", decimals=3),
    Metric("7_data/emd_max", "largest earth mover's distance of labels", decimals=3),
])  # fmt: skip
"""All that fedsweep logs, in the order of tables' columns; of lost losses the first is named."""
