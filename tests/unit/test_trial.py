"""Whole trials in this process: all strategies, privacy wrappers, partitions, shifts for real."""

import math

import pytest
from flwr.app import Context, Message

from fedsweep.client.app import BuiltinClient
from fedsweep.client.messages import partition_id
from fedsweep.data.sources import load_images
from fedsweep.records import RoundRecord, TrialResult, TrialStarted
from fedsweep.sweeps.compose import compose, options
from fedsweep.trial.trial import train_config
from tests.trials import events_of, network_of, outcome, small

NOISE = ["privacy.noise_multiplier=0.1", "privacy.strict=false"]
QUICK = ["rounds=2", "model=logreg", "num_clients=12"]


@pytest.mark.parametrize("name", options("strategy"))
def test_every_strategy_runs_and_learns(name: str) -> None:
    words = [f"strategy={name}", "rounds=3", f"model.name={network_of(name, 'logreg')}"]
    if name == "pfedme":  # whose defaults are the paper's, for hundreds of rounds
        words += ["strategy.pfedme_lambda=1", "strategy.outer_lr=0.1"]
    started, first, *rounds, result = events_of(small(*QUICK, *words))
    assert isinstance(started, TrialStarted)
    assert isinstance(result, TrialResult)
    assert [record.round for record in rounds] == [1, 2, 3]
    assert isinstance(first, RoundRecord)
    last = rounds[-1]
    assert all(math.isfinite(value) for value in last.metrics.values())
    assert last.metrics["3_clients/acc"] > 0.3
    assert len(last.clients["client"]) == 12
    assert last.clients["round"] == [3] * 12


@pytest.mark.parametrize("name", [name for name in options("privacy") if name != "none"])
def test_every_privacy_wrapper_runs(name: str) -> None:
    *_, last, result = events_of(small(*QUICK, f"privacy={name}", *NOISE))
    assert isinstance(result, TrialResult)
    assert math.isfinite(last.metrics["1_global/loss"])


@pytest.mark.parametrize("name", [name for name in options("privacy") if name != "none"])
def test_under_privacy_a_client_that_always_fails_does_not_end_the_learning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains = BuiltinClient.train

    def fails(self: BuiltinClient, message: Message, context: Context) -> Message:
        if partition_id(context) == 3:
            raise RuntimeError("never")
        return trains(self, message, context)

    monkeypatch.setattr(BuiltinClient, "train", fails)
    words = [f"privacy={name}", "privacy.noise_multiplier=0", "training.engine=sequential"]
    _, first, *rounds, _ = events_of(small(*QUICK, *words, "rounds=3"))
    losses = [record.metrics["1_global/loss"] for record in (first, *rounds)]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


@pytest.mark.parametrize("name", options("partition"))
def test_every_partition_runs(name: str) -> None:
    words = ["model=logreg", f"partition={name}", "rounds=1"]
    clients = "num_clients=6"
    if name == "natural":  # it asks whose an example is, which images don't say
        words, clients = [*words, "dataset=synthetic"], "num_clients=30"
    config = compose(words) if name == "centralized" else small(*words, clients)
    images = None
    if name == "natural":
        images = load_images(config.dataset, config.data, config.natural_column)
    started, *_, result = events_of(config, images=images)
    assert started.data.label_counts.sum() > 0
    assert isinstance(result, TrialResult)


def test_rotated_groups_are_found_and_pay_off() -> None:
    """The answer is known: four rotations, four clusters;
    and clustered clients beat one global model.
    """
    words = ["num_clients=20", "model=logreg", "training.epochs=5", "rounds=6", "shift=rotation"]
    for seed in (0, 1, 2):
        *_, clustered = events_of(
            small(*words, f"seed={seed}", "strategy=kmeans", "strategy.warmup_rounds=2")
        )
        *_, plain = events_of(small(*words, f"seed={seed}", "strategy=fedavg"))
        assert clustered.summary["ari"] == 1.0
        assert clustered.summary["client_acc"] > plain.summary["client_acc"] + 0.15


def test_one_cluster_is_fedavg_to_the_bit() -> None:
    clustered = outcome(events_of(small(*QUICK, "strategy=kmeans", "strategy.num_clusters=1")))
    plain = outcome(events_of(small(*QUICK, "strategy=fedavg")))
    assert [m["1_global/loss"] for m in clustered[1]] == [m["1_global/loss"] for m in plain[1]]


def test_the_server_rule_changes_no_weight() -> None:
    rules = ("load", "load_once", "random", "round_robin", "largest_data")
    words = [*QUICK, "strategy=kmeans", "strategy.num_clusters=2"]
    results = {
        rule: outcome(events_of(small(*words, f"strategy.server.rule={rule}"))) for rule in rules
    }
    assert len({result[0] for result in results.values()}) == 1


def test_sampling_takes_a_fraction_and_is_seeded() -> None:
    def clients(seed: int) -> list[list[int]]:
        words = [
            *QUICK,
            "strategy.fraction_train=0.25",
            "strategy.fraction_evaluate=0",
            f"seed={seed}",
        ]
        return [list(r.clients["client"]) for r in events_of(small(*words))[2:-1]]

    assert [len(chosen) for chosen in clients(0)] == [3, 3]
    assert clients(0) == clients(0) != clients(1)


def test_evaluation_every_other_round_and_in_the_last() -> None:
    rounds = events_of(small(*QUICK, "rounds=5", "evaluate_every=2"))[2:-1]
    assert [record.round for record in rounds if "1_global/acc" in record.metrics] == [2, 4, 5]


def test_a_dotted_model_trains() -> None:
    words = ["model.name=tests.networks.Small", "model.kwargs={features:64,classes:10}"]
    *_, result = events_of(small(*QUICK, *words))
    assert set(result.models["global"]) == {"out.weight", "out.bias"}


def test_the_choice_of_servers_is_kept_with_its_inputs() -> None:
    _, _, _, last, _ = events_of(
        small(*QUICK, "shift=rotation", "strategy=kmeans", "strategy.warmup_rounds=1")
    )
    rows = last.assignments
    assert len(rows["client"]) == 12
    assert sum(rows["server"]) == len(set(rows["cluster"]))
    for name in ("score", "load_cpu_s", "load_rss_mb", "load_node"):
        assert all(math.isfinite(value) and value >= 0 for value in rows[name]), name
    assert min(rows["load_cpu_s"]) > 0
    assert len(last.load) >= 1, "a round, however short, has a load sample"


def test_every_training_message_names_its_steps() -> None:
    """Left open, ``steps`` is 0 on the way to the clients;
    options that are off are not sent at all.
    """
    told = train_config(small().training)
    assert told["steps"] == 0
    assert told["lr"] == 0.02
    assert not {"augment", "precision", "threads", "engine"} & told.keys()
