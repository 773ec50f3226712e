"""K models that clients choose from: how they begin, are sent, are matched (as IFCA's are)."""

from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from fedsweep.strategies.clients import (
    ClientPart,
    Effort,
    Update,
    Values,
    Work,
    training_effort,
    with_method,
)
from fedsweep.strategies.clustering import kmeans
from fedsweep.strategies.grouping import silhouette, tree_split
from fedsweep.strategies.layout import Layout, WithLayout
from fedsweep.strategies.models import Models

CANDIDATE = "model-{}"
"""Under which name each of the K models is sent."""
MARGIN = 0.1
"""More clusters are taken only if their silhouette is better by more than this share (CLoVE)."""


class Candidates(WithLayout, FedAvg):
    """K models that began independently; a client evaluated under its own choice says which."""

    has_global_model = False  # the mean of networks that began apart is none that anybody trained
    assigns_in_evaluation = True
    clusters_clients = True
    sends_whole_model = False

    def chosen(self, choices: Mapping[int, int]) -> None:
        """Take in which model each of some clients chose in the evaluation, by node."""
        raise NotImplementedError

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Read the choices, and average the metrics."""
        replies = list(replies)
        told = {
            reply.metadata.src_node_id: reply.content.config_records["choice"]["cluster"]
            for reply in replies
            if reply.has_content() and "choice" in reply.content.config_records
        }
        self.chosen({node: int(cluster) for node, cluster in sorted(told.items())})  # type: ignore[arg-type]
        return super().aggregate_evaluate(server_round, replies)


class Choosing(ClientPart):
    """A client takes the model that fits its training examples best, and says which (IFCA)."""

    method = "choose"

    def fit(self, work: Work) -> Update:
        """Train the model of the lowest loss; the losses are those from before the training."""
        trained = work.train(self.model(work))
        return Update(trained.results, trained.models)

    def model(self, work: Work) -> Models:
        """Return each client's model of the lowest training loss."""
        candidates = work.candidates()
        losses = [own.mean(axis=0).tolist() for own in work.losses(candidates)]
        clusters = [best(own) for own in losses]
        work.tell(
            "choice",
            [{"cluster": k, "losses": own} for k, own in zip(clusters, losses, strict=True)],
        )
        return candidates.take(clusters)

    def effort(self, config: Values, examples: int, models: int) -> Effort:
        """Return what a client computes that scores all models and trains one."""
        return Effort(training_effort(config, examples), float(examples * models))


def best(losses: Sequence[float]) -> int:
    """Return the number of the lowest loss, the first of equals; what is not finite is highest."""
    values = np.asarray(losses, np.float64)
    return int(np.where(np.isfinite(values), values, np.inf).argmin())


def initial_models(
    arrays: ArrayRecord, num_models: int, seed: int, layout: Layout
) -> dict[int, ArrayRecord]:
    """Return K initial models: the given one, and others that have its trained arrays shuffled.

    The entries of a freshly drawn layer are exchangeable, so a random order of them is another draw
    from the same distribution, and no client has to be asked for one. What is constant (zero
    biases, BatchNorm) stays as it is, and so do running statistics and frozen layers.
    """
    models, trained = {0: arrays}, set(layout.trained)
    for k in range(1, num_models):
        rng = np.random.default_rng([seed, k])
        models[k] = ArrayRecord(
            {
                key: _shuffled(array, rng) if key in trained else array
                for key, array in arrays.items()
            }
        )
    return models


def _shuffled(array: Array, rng: np.random.Generator) -> Array:
    values = array.numpy()
    return Array(rng.permutation(values.ravel()).reshape(values.shape))


def all_models(
    models: Mapping[int, ArrayRecord], config: ConfigRecord, config_key: str = "config"
) -> RecordDict:
    """Return the content that carries every model, ``model-0`` to ``model-<K-1>``."""
    content = RecordDict({CANDIDATE.format(k): models[k] for k in sorted(models)})
    content[config_key] = config
    return content


def began_with(sent: RecordDict, reply: RecordDict) -> str:
    """Return the name of the model that a client began with: of several, the one that it chose."""
    models = sent.array_records
    choice = reply.config_records.get("choice", ConfigRecord())
    chosen = CANDIDATE.format(cast(int, choice.get("cluster", -1)))
    return chosen if chosen in models else next(iter(models))


def to_all(messages: Iterable[Message], content: RecordDict) -> list[Message]:
    """Give all messages one content: one object, which a grid can send once."""
    messages = list(messages)
    for message in messages:
        message.content = content
    return messages


def to_own_or_all(
    messages: Iterable[Message],
    assignment: Mapping[int, int],
    models: Mapping[int, ArrayRecord],
    config: ConfigRecord,
    names: tuple[str, str],
) -> list[Message]:
    """Give evaluation messages their clusters' models;
    a client without a cluster gets all, and chooses by itself.

    Parameters
    ----------
    messages : iterable of Message
        As FedAvg configured them.
    assignment, models : mapping
        Cluster of each node that has one; model of each cluster.
    config : ConfigRecord
        The evaluation's config.
    names : (str, str)
        Keys of the ArrayRecord and of the ConfigRecord.
    """
    own = {k: RecordDict({names[0]: arrays, names[1]: config}) for k, arrays in models.items()}
    every = all_models(models, with_method(config, Choosing.method), names[1])
    messages = list(messages)
    for message in messages:
        node = message.metadata.dst_node_id
        message.content = own[assignment[node]] if node in assignment else every
    return messages


def changed(before: Mapping[int, int], after: Mapping[int, int]) -> int:
    """Return how many nodes that had a cluster have another one now."""
    return sum(1 for node, cluster in before.items() if after.get(node, cluster) != cluster)


def group_losses(
    losses_CK: NDArray[np.float64], num_clusters: int, seed: int, *, auto: bool
) -> tuple[NDArray[np.int64], float]:
    """Return a label per client, and the silhouette, by K-means on the loss vectors.

    With ``auto`` their number is chosen of 2..K, by the silhouettes of Ward's tree (CLoVE's code).
    """
    rows, most = losses_CK.astype(np.float32), min(num_clusters, len(losses_CK))
    if auto:
        points_CK, split = losses_CK - losses_CK.mean(axis=0), tree_split("ward")
        silhouettes = {k: silhouette(points_CK, split(points_CK, k)) for k in range(2, most + 1)}
        most = min(better_by_a_tenth(silhouettes), most)
    return kmeans(rows, most, "euclidean", seed)


def better_by_a_tenth(silhouettes: Mapping[int, float]) -> int:
    """Return the number of groups: going up, each that beats the best so far by over a tenth.

    Source: ``find_best_K_by_silhouette`` of CLoVE's code. Two where no number has a silhouette.
    """
    best, chosen = -1.0, 2
    for k in sorted(silhouettes):
        if silhouettes[k] > best * (1 + MARGIN):
            best, chosen = silhouettes[k], k
    return chosen


def match_models(losses_CK: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each client's model by the one-to-one matching of groups and models of least loss."""
    from scipy.optimize import linear_sum_assignment

    groups, rows = np.unique(labels, return_inverse=True)
    cost = np.stack([losses_CK[rows == g].sum(axis=0) for g in range(len(groups))])
    _, models = linear_sum_assignment(cost)
    chosen: NDArray[np.int64] = models[rows]
    return chosen
