"""From what a round produced to what is logged of it: keys by section, rows by client."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from fedsweep.catalog import CATALOG, Observed
from fedsweep.data.divergence import divergence_metrics
from fedsweep.links import CLUSTERING_QUERIES, MB, mb_by_link
from fedsweep.records import Columns, RoundRecord, TaskRecord
from fedsweep.strategies.base import Clustered, model_users, models_of
from fedsweep.strategies.selection import Load
from fedsweep.strategies.servers import ClusterServers
from fedsweep.trial.evaluation import TestScores
from fedsweep.trial.rounds import Round

MAX_CLUSTERS_SHOWN = 8
"""Clusters with metrics of their own; above about 40 keys a run MLflow's charts crawl."""

UNMEASURED = Load(nan, nan, nan)

CLIENT_COLUMNS = (
    "round", "client", "cluster", "group", "host", "train_loss", "train_acc", "train_examples",
    "eval_loss", "eval_acc", "eval_examples", "test_loss", "test_acc", "cpu_s", "wall_s", "rss_mb",
    "bytes_in", "bytes_out", "attacker",
)  # fmt: skip


def client_rows(
    done: Round,
    groups: np.ndarray,
    assignment: Mapping[int, int],
    users: Mapping[int, int],
    attackers: Collection[int] = (),
) -> Columns:
    """Return the clients that took part in a round as columns, in the order of their ids.

    What a client was not scored on is nan, with no examples; a loss of some examples may itself be
    nan. ``users`` says under which cluster's model a client is tested. ``attackers`` are nodes:
    they train, and are scored on nothing.
    """
    rows: dict[int, dict[str, Any]] = {}
    for task in [*done.train.tasks, *done.evaluate.tasks]:
        kind = task.message_type.split(".")[0]
        if kind not in ("train", "evaluate"):
            continue
        row = rows.setdefault(
            task.node_id, {"cpu_s": 0.0, "wall_s": 0.0, "bytes_in": 0, "bytes_out": 0}
        )
        prefix = "train" if kind == "train" else "eval"
        scored = kind == "train" or task.node_id not in attackers
        told = scored and task.error is None and f"{prefix}_loss" in task.metrics
        if told and (count := int(task.metrics.get("num-examples", 0))):
            row[f"{prefix}_examples"] = count
            row[f"{prefix}_loss"] = task.metrics[f"{prefix}_loss"]
            row[f"{prefix}_acc"] = task.metrics.get(f"{prefix}_acc", nan)
        if kind == "train":
            row["host"] = task.host
            row["rss_mb"] = task.load.get("rss_mb", nan)
        row["cpu_s"] += task.load.get("cpu_s", 0.0)
        row["wall_s"] += task.wall_s
        row["bytes_in"] += task.bytes_in
        row["bytes_out"] += task.bytes_out
    columns: dict[str, list[object]] = {name: [] for name in CLIENT_COLUMNS}
    missing: dict[str, object] = {"host": "", "train_examples": 0, "eval_examples": 0}
    for node_id in sorted(rows):
        known: dict[str, object] = {
            "round": done.number,
            "client": node_id - 1,
            "cluster": assignment.get(node_id, -1),
            "attacker": node_id in attackers,
        }
        known["group"] = group = int(groups[node_id - 1])
        model = f"cluster_{users[node_id]}" if node_id in users else "global"
        if (
            node_id not in attackers
            and done.scores
            and (own := done.scores.of_client(node_id, model, group))
        ):
            known |= {"test_loss": own.loss, "test_acc": own.acc}
        for name in CLIENT_COLUMNS:
            columns[name].append(known.get(name, rows[node_id].get(name, missing.get(name, nan))))
    return columns


def assignment_rows(number: int, strategy: Clustered) -> Columns:
    """Return a clustered strategy's choices of a round as columns, one row per client.

    Of the choice of servers they hold its inputs (the client's smoothed load), the scores and the
    outcome.
    """
    servers = {node_id: cluster for cluster, node_id in strategy.servers.items()}
    nodes = sorted(strategy.assignment)
    plane: Mapping[int, tuple[float, float]] = getattr(
        strategy, "plane", {}
    )  # where the clustering draws one
    election: ClusterServers | None = getattr(
        strategy, "election", None
    )  # where servers are chosen
    loads = [(election.loads if election else {}).get(node_id, UNMEASURED) for node_id in nodes]
    return {
        "round": [number] * len(nodes),
        "client": [node_id - 1 for node_id in nodes],
        "cluster": [strategy.assignment[node_id] for node_id in nodes],
        "server": [servers.get(node_id) == strategy.assignment[node_id] for node_id in nodes],
        "score": [float(strategy.scores.get(node_id, nan)) for node_id in nodes],
        "tenure": [strategy.tenure.get(strategy.assignment[node_id], 0) for node_id in nodes],
        "load_cpu_s": [load.cpu_s for load in loads],
        "load_rss_mb": [load.rss_mb for load in loads],
        "load_node": [load.node for load in loads],
        "x": [plane.get(node_id, (nan, nan))[0] for node_id in nodes],
        "y": [plane.get(node_id, (nan, nan))[1] for node_id in nodes],
    }


def agreement(assignment: Mapping[int, int], groups: np.ndarray) -> dict[str, float]:
    """Return how well clusters match known groups: ARI, AMI (1: exact), share of matched clients.

    Sources: Hubert and Arabie 1985 (ARI), Vinh et al. 2010 (AMI), as scikit-learn computes them.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score
    from sklearn.metrics.cluster import contingency_matrix

    nodes = sorted(assignment)
    found = [assignment[node_id] for node_id in nodes]
    true = [int(groups[node_id - 1]) for node_id in nodes]
    counts = contingency_matrix(true, found)
    rows, cols = linear_sum_assignment(-counts)
    return {
        "ari": float(adjusted_rand_score(true, found)),
        "ami": float(adjusted_mutual_info_score(true, found)),
        "matched": float(counts[rows, cols].sum() / len(nodes)),
    }


class Ledger:
    """Running totals of a trial: MiB moved, seconds spent clustering, and since when it rests."""

    def __init__(
        self,
        mb_down: float = 0.0,
        mb_up: float = 0.0,
        clustering_s: float = 0.0,
        stable_since: int = 0,
    ) -> None:
        self.mb_down, self.mb_up = mb_down, mb_up
        self.clustering_s, self.stable_since = clustering_s, stable_since

    def settle(self, number: int, churn: float, seconds: float) -> dict[str, float]:
        """Take in how many clients changed their cluster in a round, and the clustering's time."""
        self.clustering_s += seconds
        if churn or not self.stable_since:
            self.stable_since = number
        return {
            "2_clusters/stable_since": float(self.stable_since),
            "5_time/clustering_s": seconds,
            "5_time/clustering_total_s": self.clustering_s,
        }

    def add(self, tasks: list[TaskRecord], clustered: Clustered | None = None) -> dict[str, float]:
        """Count a round's client traffic, clustering included;
        queries for aggregation and the test are apart.

        Where a strategy has clusters, also by link: see :func:`fedsweep.links.mb_by_link`.
        """
        asked = [task for task in tasks if task.message_type in CLUSTERING_QUERIES]
        clients = asked + [task for task in tasks if not task.message_type.startswith("query")]
        servers = [task for task in tasks if task.message_type == "query.aggregate"]
        down, up = (
            sum(getattr(t, side) for t in clients) / MB for side in ("bytes_in", "bytes_out")
        )
        self.mb_down, self.mb_up = self.mb_down + down, self.mb_up + up
        counted = {
            "4_comm/mb_down": down,
            "4_comm/mb_up": up,
            "4_comm/mb_total": self.mb_down + self.mb_up,
        }
        if asked:
            counted["4_comm/mb_clustering"] = (
                sum(task.bytes_in + task.bytes_out for task in asked) / MB
            )
        if servers:
            counted["4_comm/mb_to_servers"] = sum(task.bytes_in for task in servers) / MB
        if clustered and clustered.assignment:
            several = not models_of(clustered).sends_whole_model
            central = bool(getattr(clustered, "clustering_round", False))
            members = getattr(
                clustered, "members", clustered.assignment
            )  # where clients choose, those that trained
            links = mb_by_link(tasks, members, clustered.servers, central, several)
            counted |= {f"4_comm/mb_{link}": moved for link, moved in links.items()}
        return counted


def initial_record(
    scores: TestScores | None, label_counts: np.ndarray, asked: Collection[str] = ()
) -> RoundRecord:
    """Return round 0: the initial model on the central test set, and how far the clients' labels
    (clients, classes) are from the global distribution.
    """
    classes = scores.classes() if scores and asked else {}
    metrics = _global_metrics(scores)
    of_global = Observed(
        classes={whose: own for whose, own in classes.items() if whose == "global"},
        global_loss=metrics.get("1_global/loss"),
    )
    metrics |= CATALOG.computed(of_global, asked)
    return RoundRecord(0, metrics | divergence_metrics(label_counts))


def _global_metrics(scores: TestScores | None) -> dict[str, float]:
    if scores is None or not scores.clients.get("global"):
        return {}
    if not scores.has_accuracies:
        return {"1_global/loss": scores.mean("global", "loss")}
    wanted = {"1_global/attack_success": scores.goal.mean("global")} if scores.goal else {}
    return {
        "1_global/acc": scores.mean("global"),
        "1_global/loss": scores.mean("global", "loss"),
        **wanted,
    }


def round_record(
    done: Round,
    groups: np.ndarray,
    clustered: Clustered | None,
    scores: TestScores | None,
    ledger: Ledger,
    seconds: float,
    there: Collection[int] | None = None,
    asked: Collection[str] = (),
    *,
    attackers: Collection[int] = (),
    accused: Collection[int] | None = None,
) -> RoundRecord:
    """Return the record of a round.

    Parameters
    ----------
    done : Round
        The round.
    groups : (clients,) int
        Known groups; one group means that none are known.
    clustered : Clustered, optional
        The strategy, if it clusters.
    scores : TestScores, optional
        The central evaluation, if the round had one.
    ledger : Ledger
        Totals so far; this round is added.
    seconds : float
        Wall time of the whole round, central evaluation included.
    there : collection of int, optional
        Clients that there are in the round, but for attackers; all by default.
    asked : collection of str
        Metrics beside those of every trial: ``TrialConfig.metrics``.
    attackers : collection of int
        Their nodes: what is said of clients is said of the others.
    accused : collection of int, optional
        Nodes whose replies the strategy left out, where it is one that does.
    """
    assignment = dict(clustered.assignment) if clustered else {}
    users = model_users(clustered) if clustered else {}
    clients = client_rows(done, groups, assignment, users, attackers)
    metrics = _global_metrics(scores)
    if clustered and assignment:
        metrics |= _cluster_metrics(clustered, assignment, groups, scores, attackers)
        churn = metrics.get("2_clusters/churn", 0.0)
        metrics |= ledger.settle(done.number, churn, getattr(clustered, "clustering_s", 0.0))
    metrics |= _client_metrics(done, clients)
    metrics |= _attack_metrics(done, attackers, accused)
    metrics |= _missing_tests(scores, len(groups) if there is None else len(there))
    own = _observed_tests(scores, asked)
    observed = replace(
        own,
        clients={**_values_of_clients(clients), **own.clients},
        global_loss=metrics.get("1_global/loss"),
    )
    metrics |= CATALOG.computed(observed, asked)
    metrics |= ledger.add(done.train.tasks + done.evaluate.tasks, clustered)
    metrics |= {f"5_time/{name}_s": value for name, value in done.seconds.items()}
    metrics["5_time/round_s"] = seconds
    if done.settled is not None:
        metrics |= done.settled.metrics
    metrics |= _load_metrics(done)
    failed = [task for task in done.train.tasks + done.evaluate.tasks if task.error]
    metrics["6_load/failed_tasks"] = float(len(failed))
    lines = [
        f"client {task.node_id - 1} failed: {str(task.error).strip().splitlines()[-1]}"
        for task in failed
    ]
    return RoundRecord(
        round=done.number,
        metrics={key: float(value) for key, value in metrics.items()},
        clients=clients,
        assignments=assignment_rows(done.number, clustered) if clustered and assignment else {},
        tasks=done.settled.tasks if done.settled else {},
        load=tuple(dict.fromkeys(done.train.samples + done.evaluate.samples)),
        events=(*done.train.events, *done.evaluate.events, *lines),
    )


def _cluster_metrics(
    clustered: Clustered,
    assignment: Mapping[int, int],
    groups: np.ndarray,
    scores: TestScores | None,
    attackers: Collection[int],
) -> dict[str, float]:
    clusters = sorted(clustered.cluster_arrays)
    sizes = {c: sum(1 for other in assignment.values() if other == c) for c in clusters}
    metrics = {"2_clusters/count": float(len(clusters))}
    for c in clusters[:MAX_CLUSTERS_SHOWN]:
        metrics[f"2_clusters/c{c}_size"] = float(sizes[c])
        if scores and scores.clients.get(f"cluster_{c}") and sizes[c]:
            if scores.has_accuracies:
                metrics[f"2_clusters/c{c}_acc"] = scores.mean(f"cluster_{c}")
            metrics[f"2_clusters/c{c}_loss"] = scores.mean(f"cluster_{c}", "loss")
    metrics |= {f"2_clusters/{name}": value for name, value in clustered.diagnostics().items()}
    honest = {node: c for node, c in assignment.items() if node not in attackers}
    if len(set(groups.tolist())) > 1 and honest:
        metrics |= {
            f"2_clusters/{name}": value for name, value in agreement(honest, groups).items()
        }
    if attackers:
        metrics |= {
            f"2_clusters/{name}": value for name, value in capture(assignment, attackers).items()
        }
    return metrics


def capture(assignment: Mapping[int, int], attackers: Collection[int]) -> dict[str, float]:
    """Return where a clustering has the attackers.

    Returns
    -------
    dict
        ``attackers_ari``: agreement of the clusters with who attacks (1: exact, 0: as by chance).
        ``attackers_apart``: share of the attackers whose cluster has no honest client.
        ``captured``: share of the honest clients in whose cluster most are attackers. A share of
        nobody is left out.
    """
    from sklearn.metrics import adjusted_rand_score

    nodes = sorted(assignment)
    attacks = {node: node in attackers for node in nodes}
    sizes, bad = (
        Counter(assignment.values()),
        Counter(assignment[node] for node in nodes if attacks[node]),
    )
    ari = adjusted_rand_score(
        [attacks[node] for node in nodes], [assignment[node] for node in nodes]
    )
    found = {"attackers_ari": float(ari)}
    if theirs := [assignment[node] for node in nodes if attacks[node]]:
        apart = sum(bad[cluster] == sizes[cluster] for cluster in theirs)
        found["attackers_apart"] = apart / len(theirs)
    if others := [assignment[node] for node in nodes if not attacks[node]]:
        captured = sum(2 * bad[cluster] > sizes[cluster] for cluster in others)
        found["captured"] = captured / len(others)
    return found


def _attack_metrics(
    done: Round, attackers: Collection[int], accused: Collection[int] | None
) -> dict[str, float]:
    """Return how many attackers took part, and how many of them the strategy left out."""
    if not attackers:
        return {}
    tasks = done.train.tasks
    replied = {t.node_id for t in tasks if t.message_type == "train" and not t.error}
    there = replied.intersection(attackers)
    if accused is None:
        return {"3_clients/attackers": float(len(there))}
    found = there.intersection(accused)
    metrics = {"3_clients/attackers": float(len(there) - len(found))}
    if there:
        metrics["3_clients/attackers_recall"] = len(found) / len(there)
    if accused:
        metrics["3_clients/attackers_precision"] = len(found) / len(accused)
    return metrics


def _client_metrics(done: Round, clients: Columns) -> dict[str, float]:
    metrics = {"3_clients/asked": float(done.asked), "3_clients/trained": float(done.used)}
    if clients["client"]:
        metrics["3_clients/nonfinite"] = float(len(_nonfinite(done)))
    without = sum(
        task.message_type == "evaluate" and not task.error and not task.metrics.get("num-examples")
        for task in done.evaluate.tasks
    )
    if without:
        metrics["3_clients/without_eval"] = float(without)
    return metrics


def _values_of_clients(clients: Columns) -> dict[str, np.ndarray]:
    """Return the values of the honest clients that have some, by name: (clients that do,)."""
    found = {}
    honest = ~np.asarray(clients["attacker"], bool)
    for kind in ("train", "eval"):
        there = (np.asarray(clients[f"{kind}_examples"]) > 0) & honest
        if there.any():
            for name in (f"{kind}_loss", f"{kind}_acc"):
                values = np.asarray(clients[name], float)[there]
                if name.endswith("_loss") or not np.isnan(values).all():  # numbers have none
                    found[name] = values
    return found


def _nonfinite(done: Round) -> set[int]:
    """Return the clients that replied a loss, of any kind, that is not finite."""
    return {
        task.node_id
        for task in done.train.tasks + done.evaluate.tasks
        for key, value in task.metrics.items()
        if key.endswith("loss") and not np.isfinite(value)
    }


def own_test_metrics(
    scores: TestScores | None, online: int, asked: Collection[str] = ()
) -> dict[str, float]:
    """Return how the clients' own models do on the central test set, as their groups see it.

    Own is what a client would use: a personal model, its cluster's, or the one of all. A client
    whose model was not tested is left out and counted.

    Parameters
    ----------
    scores : TestScores, optional
        Of the round.
    online : int
        Clients that there are, but for attackers.
    asked : collection of str
        As in :func:`round_record`.
    """
    computed = CATALOG.computed(_observed_tests(scores, asked), asked)
    return computed | _missing_tests(scores, online)


def _observed_tests(scores: TestScores | None, asked: Collection[str]) -> Observed:
    if scores is None:
        return Observed()
    acc = scores.of_clients()
    values = {"test_acc": acc, "test_loss": scores.of_clients("loss")} if len(acc) else {}
    if scores.goal and len(reached := scores.goal.of_clients()):
        values["attack_success"] = reached
    if not scores.has_accuracies:
        values.pop("test_acc", None)
    return Observed(values, scores.classes() if asked else {})


def _missing_tests(scores: TestScores | None, online: int) -> dict[str, float]:
    tested = len(scores.of_clients()) if scores else 0
    return {"3_clients/without_test": float(online - tested)} if 0 < tested < online else {}


def _load_metrics(done: Round) -> dict[str, float]:
    tasks = [task for task in done.train.tasks if task.message_type == "train" and task.load]
    if not tasks:
        return {}
    return {
        "6_load/cpu_s": sum(task.load["cpu_s"] for task in tasks),
        "6_load/rss_mb_max": max(task.load["rss_mb"] for task in tasks),
        "6_load/node_cpu": float(np.mean([task.load["node_cpu"] for task in tasks])),
        "6_load/node_mem": float(np.mean([task.load["node_mem"] for task in tasks])),
    }
