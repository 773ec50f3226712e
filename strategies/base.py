"""What clustered strategies share: how the round loop sees them, how replies become models."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from logging import INFO, WARNING
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsweep.strategies.insides import (
    aggregate_metricrecords,
    log,
    validate_message_reply_consistency,
)
from fedsweep.strategies.layout import Layout, is_finite

V = TypeVar("V")
TIMEOUT_S = 3600.0  # as in Flower's Strategy.start: a client that never answers is a lost one


@dataclass(frozen=True)
class ModelTraits:
    """What a method says about its models, by class attributes of these names;
    else it is as FedAvg.
    """

    has_global_model: bool = True
    """There is one model for all: not where nothing is averaged, or K networks are independent."""
    personal_models: bool = False
    """Each client uses a model that nobody else has, and alone can score it."""
    averages_models: bool = True
    """``aggregate_train`` returns a model whenever replies came."""
    assigns_in_evaluation: bool = False
    """Who uses which model is known after ``aggregate_evaluate``."""
    sends_whole_model: bool = True
    """Clients are sent one model, and send all of it back."""
    clusters_clients: bool = False
    """It trains one model per cluster of clients."""
    mean_of_models: bool = True
    """Its mean is of the clients' models, and of nothing else that they send."""
    accuses: bool = False
    """It takes some replies for attackers', and leaves them out: see :func:`accused_by`."""


def models_of(strategy: object) -> ModelTraits:
    """Return what a strategy, its class, or the strategy inside wrappers says about its models."""
    inner = _innermost(strategy)
    said = {field.name: getattr(inner, field.name, field.default) for field in fields(ModelTraits)}
    return ModelTraits(**said)  # type: ignore[arg-type]


def accused_by(strategy: object) -> frozenset[int] | None:
    """Return the nodes whose replies a method took for attackers' in the last round.

    A method that chooses among replies has them in ``accused``; None of one that does not.
    """
    found: Iterable[int] | None = getattr(_innermost(strategy), "accused", None)
    return None if found is None else frozenset(found)


def _innermost(strategy: object) -> object:
    """Return the strategy inside all wrappers."""
    while hasattr(strategy, "strategy"):
        strategy = strategy.strategy
    return strategy


def says(strategy: object, fact: str) -> bool:
    """Return whether a strategy's very class says a fact: one derived from it may do otherwise.

    ``partial_means``: replies may be replaced by partial means, weighted by examples (in rounds in
    which it does not read each: ``clustering_round``). ``private_mean``: it goes on from a mean
    over clients, to which privacy's noise can be added. ``any_version``: replies to older models
    may be among those that it aggregates, moved to the present one (``runner/pace/deliveries.py``).
    ``needs_classes``: its clients look at the classes of their examples, and learn no number.
    """
    return bool(vars(type(strategy)).get(fact, False))


def sums_suffice(method: type) -> bool:
    """Return whether a method needs no more of its clients' models than sums of them.

    Then secure aggregation may hide each. A class says it for itself (``sums_suffice``: of a method
    that groups clients by what it knows of them otherwise), or it takes partial means and groups
    nobody by them.
    """
    said = vars(method)
    means = bool(said.get("partial_means", False)) and not models_of(method).clusters_clients
    return bool(said.get("sums_suffice", means))


@runtime_checkable
class Clustered(Protocol):
    """A strategy that trains one model per cluster of clients.

    Read it after ``aggregate_train`` of each round; where it ``assigns_in_evaluation``, after
    ``aggregate_evaluate``.
    """

    @property
    def assignment(self) -> Mapping[int, int]:
        """Cluster of each node id; empty before the clustering."""

    @property
    def cluster_arrays(self) -> Mapping[int, ArrayRecord]:
        """Model of each cluster; empty before the clustering."""

    @property
    def servers(self) -> Mapping[int, int]:
        """Node id of each cluster's server, but for clusters that no member served last round."""

    @property
    def scores(self) -> Mapping[int, float]:
        """Load score of each node, scaled within its cluster; the lowest is the best server."""

    @property
    def tenure(self) -> Mapping[int, int]:
        """Rounds that each cluster's server has served in a row."""

    def diagnostics(self) -> dict[str, float]:
        """Return numbers about the clustering, by bare name; empty before it."""


def model_users(strategy: Clustered) -> dict[int, int]:
    """Return the cluster whose model each node uses;
    the others use the global model, where there is one.
    """
    guests: Mapping[int, int] = getattr(
        strategy, "guests", {}
    )  # evaluated under a choice of their own
    there = strategy.cluster_arrays.keys()
    return {node: c for node, c in {**guests, **strategy.assignment}.items() if c in there}


State = dict[str, Any]
"""What a checkpoint keeps of an object, by name: JSON's values, NumPy arrays and ArrayRecords."""


@runtime_checkable
class Resumable(Protocol):
    """A strategy whose state between two rounds can be stored and put back."""

    def state_dict(self) -> State:
        """Return the state: JSON-able values and ArrayRecords in nested dicts with string keys."""

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""


def sort_replies(
    strategy: FedAvg, replies: Iterable[Message], read_arrays: bool
) -> tuple[list[Message], list[Message]]:
    """Return the replies of a training round that carry content, and the errors;
    log and check them as FedAvg does.

    Parameters
    ----------
    strategy : FedAvg
        Whose replies these are.
    replies : iterable of Message
        From the grid.
    read_arrays : bool
        Also check that each reply holds one ArrayRecord, all with the same keys. That reads the
        records, so leave it out where they are to stay references.

    Raises
    ------
    InconsistentMessageReplies
        If the replies can't be averaged.
    """
    replies = list(replies)
    valid = [reply for reply in replies if not reply.has_error()]
    errors = [reply for reply in replies if reply.has_error()]
    log(INFO, "aggregate_train: Received %s results and %s failures", len(valid), len(errors))
    for reply in errors:
        node, reason = reply.metadata.src_node_id, reply.error.reason
        log(INFO, "\t> Received error in reply from node %d: %s", node, reason)
    if valid:
        contents = [reply.content for reply in valid]
        validate_message_reply_consistency(
            contents, strategy.weighted_by_key, check_arrayrecord=read_arrays
        )
    return valid, errors


def ask(
    grid: Grid, query: str, contents: Mapping[int, RecordDict], needed_by: str = ""
) -> dict[int, RecordDict]:
    """Send each node a query; return the answers by node, in order of ids.

    Errors are logged and left out.

    Raises
    ------
    RuntimeError
        If a strategy is named that needs answers, and none came.
    """
    messages = [Message(content, node, query) for node, content in sorted(contents.items())]
    answers = {}
    for reply in grid.send_and_receive(messages, timeout=TIMEOUT_S) if messages else ():
        node = reply.metadata.src_node_id
        if reply.has_error():
            log(WARNING, "client %d gave no answer to %s: %s", node, query, reply.error.reason)
        else:
            answers[node] = reply.content
    if needed_by and messages and not answers:
        raise RuntimeError(
            f"no client answered {query}: strategy={needed_by} needs clients that do"
        )
    return dict(sorted(answers.items()))


def arrays_of(reply: Message) -> ArrayRecord:
    """Return a reply's only ArrayRecord: the object that was received, unread."""
    return next(iter(reply.content.array_records.values()))


def senders_of(reply: Message) -> list[int]:
    """Return the nodes that a reply stands for: a partial mean says whose it is."""
    load = reply.content.config_records.get("load", ConfigRecord())
    return [
        int(node) for node in cast(list[int], load.get("node-ids", [reply.metadata.src_node_id]))
    ]


def weight_of(reply: Message, weighted_by_key: str) -> float:
    """Return a reply's weight in averages: the examples of its client, or of all it stands for.

    Without a key every reply weighs 1.
    """
    if not weighted_by_key:
        return 1.0
    return float(next(iter(reply.content.metric_records.values()))[weighted_by_key])  # type: ignore[arg-type]


def largest(reply: Message, weighted_by_key: str) -> tuple[float, int]:
    """Return the largest weight of a client that a reply stands for, and minus its node id.

    A partial mean says what its clients weigh: see
    :meth:`~fedsweep.strategies.servers.ClusterServers.observe`.
    """
    load = reply.content.config_records.get("load", ConfigRecord())
    if "num-examples" in load and "node-ids" in load:
        weights, nodes = (cast(list[float], load[key]) for key in ("num-examples", "node-ids"))
        return max((w, -int(node)) for w, node in zip(weights, nodes, strict=True))
    return weight_of(reply, weighted_by_key), -reply.metadata.src_node_id


def metrics_of(strategy: FedAvg, replies: Iterable[Message]) -> MetricRecord:
    """Return the training metrics of replies, aggregated as the strategy does."""
    contents = [reply.content for reply in replies]
    return strategy.train_metrics_aggr_fn(contents, strategy.weighted_by_key)


def heaviest(replies: Sequence[Message], weighted_by_key: str) -> int:
    """Return the place of the reply whose client has the most examples, then the lowest id."""
    return max(range(len(replies)), key=lambda i: largest(replies[i], weighted_by_key))


def mean_of_replies(
    replies: Sequence[Message], weighted_by_key: str, layout: Layout
) -> ArrayRecord:
    """Return the weighted mean of the models that replies carry; "" as a key is a plain mean."""
    weights = [weight_of(reply, weighted_by_key) for reply in replies]
    return layout.mean(
        [arrays_of(reply) for reply in replies], weights, heaviest(replies, weighted_by_key)
    )


def mean_of_states(
    replies: Sequence[Message],
    states: Sequence[ArrayRecord],
    weighted_by_key: str,
    layout: Layout,
) -> ArrayRecord:
    """Return what of a model is not trained, averaged over replies by examples.

    One that is not finite has no part in it, as long as another one is: a client whose training
    diverged has running statistics that are no numbers, and a mean that leaves its weights out
    would still be nobody's.
    """
    finite = [row for row, state in enumerate(states) if is_finite(state)]
    rows = finite or range(len(states))
    kept = [replies[row] for row in rows]
    weights = [weight_of(reply, weighted_by_key) for reply in kept]
    return layout.mean([states[row] for row in rows], weights, heaviest(kept, weighted_by_key))


def mean_of_scored(records: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Return the weighted mean of evaluation metrics;
    empty where nobody had examples, which Flower divides by.
    """
    scored = [
        record for record in records if next(iter(record.metric_records.values()))[weighted_by_key]
    ]
    return aggregate_metricrecords(scored, weighted_by_key) if scored else MetricRecord()


def mean_of_clusters(
    cluster_arrays: Mapping[int, ArrayRecord],
    assignment: Mapping[int, int],
    examples: Mapping[int, float],
    layout: Layout,
) -> ArrayRecord:
    """Return the global model: the clusters' models, weighted by their members' known examples."""
    clusters = sorted(cluster_arrays)
    if len(clusters) == 1:
        return cluster_arrays[clusters[0]]
    weights = dict.fromkeys(clusters, 0.0)
    for node, cluster in assignment.items():
        weights[cluster] += examples.get(node, 0.0)
    return layout.mean([cluster_arrays[cluster] for cluster in clusters], list(weights.values()))


def join_largest(assignment: dict[int, int], nodes: Iterable[int]) -> None:
    """Add the nodes that no cluster has yet to the largest cluster, the first of equals."""
    new = sorted(set(nodes) - assignment.keys())
    if new:
        sizes = Counter(assignment.values())
        assignment.update(
            dict.fromkeys(new, min(sizes, key=lambda cluster: (-sizes[cluster], cluster)))
        )


def string_keys(table: Mapping[int, V]) -> dict[str, V]:
    """Return a table by node or cluster as JSON can hold it."""
    return {str(key): value for key, value in table.items()}


def int_keys(table: Mapping[str, V]) -> dict[int, V]:
    """Return what ``string_keys`` was given."""
    return {int(key): value for key, value in table.items()}
