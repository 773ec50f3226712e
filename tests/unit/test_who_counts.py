"""Over whom a figure is taken: whole trials, worked out again from tables and final models."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fedsweep.data.federated import FederatedData
from fedsweep.errors import ConfigError, TrialError
from fedsweep.models import build_model
from fedsweep.records import RoundRecord
from fedsweep.strategies import STRATEGIES
from fedsweep.strategies.base import models_of
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.training.local import evaluate
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, network_of, small

QUICK = ["rounds=2", "model=logreg", "num_clients=12"]
PERSONAL = [name for name, kind in STRATEGIES.items() if models_of(kind).personal_models]
APART = ["ifca", "clove", "fedsoft", "fedem", "fedrc"]
"""Methods whose models began independently."""
HELD_OUT = ["acc", "acc_std", "acc_p10", "acc_min", "acc_jain", "loss"]


def words_of(strategy: str) -> list[str]:
    return [*QUICK, f"strategy={strategy}", f"model.name={network_of(strategy, 'logreg')}"]


def rounds_of(*words: str) -> list[RoundRecord]:
    return [event for event in events_of(small(*words)) if isinstance(event, RoundRecord)]


def data_of(*words: str) -> FederatedData:
    config = small(*words)
    return make_split(digits(), config).on(digits())


def accuracy(model: dict[str, np.ndarray], name: str, data: FederatedData, group: int) -> float:
    """Return a model's accuracy on the central test as a group sees it, by a network of its own."""
    x, y = data.test(group)
    net = build_model(name, x.shape[1:], 10)
    net.load_state_dict({key: torch.from_numpy(value) for key, value in model.items()})
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.images.mean, data.images.std))
    images = (torch.from_numpy(x.copy()).float() / 255 - mean) / std
    return evaluate(net, images, torch.from_numpy(y.copy()))["correct"] / len(y)


# NaN


def test_a_loss_that_is_no_number_is_shown_and_counted_and_ends_the_trial() -> None:
    words = [*QUICK, "rounds=9", "training.lr=1000", "model=mlp", "training.epochs=5"]
    *_, last = rounds_of(*words, "stop.divergence=true")
    assert last.round == 1
    assert math.isnan(last.metrics["3_clients/loss"])
    assert last.metrics["3_clients/nonfinite"] == 12
    assert [line for line in last.events if line.startswith("stopped: diverged")]
    assert math.isfinite(
        rounds_of(*words, "rounds=1", "training.lr=0.1")[-1].metrics["3_clients/loss"]
    )


# All


def test_a_trial_says_what_its_partition_leaves_out() -> None:
    words = [*QUICK, "rounds=1", "num_clients=4", "partition=pathological"]
    words.append("partition.classes_per_client=1")  # of ten
    first, *_ = rounds_of(*words)
    data = data_of(*words)
    left = len(digits().train_y) - int((data.num_examples() + data.eval_rows.sizes).sum())
    assert left > 500
    assert first.events == (f"{left:,} of 1,437 training examples are no client's",)


# The test set


@pytest.mark.parametrize("strategy", ["fedavg", "oracle", "ditto"])
def test_a_group_without_a_test_example_is_left_out_and_counted(strategy: str) -> None:
    """The test set has the classes of one group alone: the other's score was nan, as diverged."""
    words = ["shift=label_groups", "shift.groups=2", f"strategy={strategy}", "stop.divergence=true"]
    config = small(*QUICK, *words, "rounds=1")
    there = np.isin(digits().test_y, config.shift.class_sets(10, config.seed)[0])
    images = replace(digits(), test_x=digits().test_x[there], test_y=digits().test_y[there])
    *_, last, result = events_of(config, images=images)
    assert not [line for line in last.events if "diverged" in line]
    assert last.metrics["3_clients/without_test"] == 6
    tested = np.isfinite(np.array(last.clients["test_acc"]))
    assert (tested == (np.array(last.clients["group"]) == 0)).all()
    own = np.array(last.clients["test_acc"])[tested]
    assert last.metrics["3_clients/test_acc"] == pytest.approx(own.mean())
    if strategy == "oracle":
        assert [f"2_clusters/c{c}_loss" in last.metrics for c in (0, 1)] == [True, False]
    if strategy == "fedavg":
        assert last.metrics["1_global/acc"] == pytest.approx(own[0])
    assert all(math.isfinite(v) for k, v in last.metrics.items() if k.endswith(("acc", "loss")))
    assert result.summary["client_test_acc"] == last.metrics["3_clients/test_acc"]


# Held out


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_where_nobody_holds_out_there_are_no_held_out_figures(name: str) -> None:
    *_, last = rounds_of(*words_of(name), "partition.eval_fraction=0")
    assert not [key for key in HELD_OUT if f"3_clients/{key}" in last.metrics]
    assert np.isnan(last.clients["eval_acc"]).all()
    assert not any(last.clients["eval_examples"])
    assert math.isfinite(last.metrics["3_clients/train_loss"])
    assert 0 < last.metrics["3_clients/test_acc"] < 1


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_a_client_that_holds_out_nothing_is_left_out_and_counted(engine: str) -> None:
    """Of 100 examples or fewer a 200th is none."""
    words = [*QUICK, "num_clients=20", "partition=dirichlet", "partition.eval_fraction=0.005"]
    words.append(f"training.engine={engine}")
    *_, last = rounds_of(*words)
    sizes = data_of(*words).eval_rows
    held = [client for client, rows in enumerate(sizes) if len(rows)]
    assert 0 < len(held) < 20
    assert last.metrics["3_clients/without_eval"] == 20 - len(held)
    shown = [
        c for c, n in zip(last.clients["client"], last.clients["eval_examples"], strict=True) if n
    ]
    assert shown == held
    acc = np.array(last.clients["eval_acc"])[held]
    assert last.metrics["3_clients/acc"] == pytest.approx(acc.mean())
    assert last.metrics["3_clients/acc_min"] == acc.min()
    assert last.metrics["3_clients/loss"] == pytest.approx(
        np.array(last.clients["eval_loss"])[held].mean()
    )
    assert np.isnan(np.delete(np.array(last.clients["eval_acc"]), held)).all()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            ["stop.target=0.9", "partition.eval_fraction=0"],
            "no client holds out .*eval_fraction=0; raise",
        ),
        (["stop.patience=3", "strategy.fraction_evaluate=0"], "fraction_evaluate=0; raise it"),
        (
            ["stop.target=0.9", "stop.metric=1_global/acc", "strategy=ifca"],
            "ifca has no global model",
        ),
        (["stop.target=0.9", "stop.metric=1_global/loss", "strategy=local"], "local has no global"),
        (["stop.target=0.9", "stop.metric=2_clusters/ari"], "strategy=fedavg has no clusters"),
        (["stop.target=0.9", "stop.metric=2_clusters/ari", "strategy=kmeans"], "no known groups"),
        (
            ["stop.target=0.9", "stop.metric=3_clients/test_acc", "strategy=ditto"],
            "evaluate_personal",
        ),
        (
            ["halving.axis=training.lr", "partition.eval_fraction=0"],
            r"halving.metric=3_clients/acc is nev",
        ),
    ],
)
def test_watching_a_metric_that_there_is_not_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        compose(words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        ["partition.eval_fraction=0"],  # nothing watches it
        ["stop.target=0.9", "stop.metric=3_clients/test_acc", "partition.eval_fraction=0"],
        ["stop.target=0.9", "stop.metric=2_clusters/ari", "strategy=ifca", "shift=rotation"],
        [
            "stop.target=1",
            "stop.metric=3_clients/test_acc",
            "strategy=ditto",
            "evaluate_personal=always",
        ],
    ],
)
def test_watching_a_metric_that_there_is_goes(words: list[str]) -> None:
    compose(words)


# Own models on the central test set


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_methods_clients_are_scored_on_the_central_test_set(name: str) -> None:
    events = events_of(small(*words_of(name), "shift=rotation", "shift.groups=2"))
    last, result = events[-2:]
    assert len(last.clients["test_acc"]) == 12
    acc = np.array(last.clients["test_acc"])
    assert np.isfinite(acc).all()
    assert last.metrics["3_clients/test_acc"] == pytest.approx(acc.mean())
    assert last.metrics["3_clients/test_acc_min"] == acc.min()
    assert last.metrics["3_clients/test_acc_p10"] == pytest.approx(np.percentile(acc, 10))
    assert last.metrics["3_clients/test_loss"] == pytest.approx(np.mean(last.clients["test_loss"]))
    assert "3_clients/without_test" not in last.metrics
    assert result.summary["client_test_acc"] == last.metrics["3_clients/test_acc"]
    examples = sum(
        len(data_of(*words_of(name), "shift=rotation", "shift.groups=2").test(c % 2)[1])
        for c in range(12)
    )
    assert result.confusion is not None
    assert result.confusion.sum() == examples
    assert np.trace(result.confusion) / examples == pytest.approx(acc.mean())


@pytest.mark.parametrize("name", ["fedavg", "ifca", "kmeans"])
def test_own_scores_are_those_of_the_final_models(name: str) -> None:
    """Of a client's cluster in the last round, or of the one model, as its group sees the test."""
    words = [*words_of(name), "shift=rotation", "shift.groups=2", "rounds=3"]
    words += [] if name == "fedavg" else ["strategy.num_clusters=2"]
    *_, last, result = events_of(small(*words))
    data, rows = data_of(*words), last.clients
    for client, cluster, shown in zip(
        rows["client"], rows["cluster"], rows["test_acc"], strict=True
    ):
        model = result.models["global" if cluster < 0 else f"cluster_{cluster}"]
        assert shown == pytest.approx(accuracy(model, "logreg", data, client % 2))


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_models_are_scored_alike_alone_and_together(name: str) -> None:
    """And they are not the global model: after some rounds of two rotations a personal one wins."""
    words = [
        *words_of(name),
        "shift=rotation",
        "shift.groups=2",
        "rounds=3",
        "evaluate_personal=always",
    ]
    one, many = (
        rounds_of(*words, f"training.engine={e}")[1:] for e in ("sequential", "vectorized")
    )
    for a, b in zip(one, many, strict=True):
        np.testing.assert_allclose(b.clients["test_acc"], a.clients["test_acc"], atol=0.02)
        np.testing.assert_allclose(b.clients["test_loss"], a.clients["test_loss"], rtol=2e-2)
        np.testing.assert_allclose(
            np.mean(b.clients["test_acc"]), np.mean(a.clients["test_acc"]), atol=2e-3
        )


def test_a_method_without_personal_part_gives_the_global_models_figure() -> None:
    """APFL with alpha 0 uses the global model: clients score it as the server has it scored."""
    words = [
        *words_of("apfl"),
        "strategy.alpha=0",
        "strategy.adaptive=false",
        "shift=rotation",
        "shift.groups=2",
    ]
    *_, last = rounds_of(*words)
    assert last.metrics["3_clients/test_acc"] == pytest.approx(last.metrics["1_global/acc"])
    assert last.metrics["3_clients/test_loss"] == pytest.approx(
        last.metrics["1_global/loss"], rel=1e-4
    )


@pytest.mark.parametrize("name", PERSONAL)
def test_personal_models_are_scored_in_the_last_round_or_always(name: str) -> None:
    there = {
        when: [
            "3_clients/test_acc" in r.metrics
            for r in rounds_of(*words_of(name), f"evaluate_personal={when}")
        ]
        for when in ("last", "always")
    }
    assert there == {"last": [False, False, True], "always": [False, True, True]}


def test_when_personal_models_are_scored_is_in_the_key_only_where_it_says_something() -> None:
    keys = [
        compose(words).key
        for words in ([], ["evaluate_personal=last"], ["evaluate_personal=always"])
    ]
    assert len(set(keys)) == 1
    assert (
        compose(["strategy=ditto"]).key == compose(["strategy=ditto", "evaluate_personal=last"]).key
    )
    assert (
        compose(["strategy=ditto"]).key
        != compose(["strategy=ditto", "evaluate_personal=always"]).key
    )


@pytest.mark.parametrize("name", PERSONAL)
def test_a_trial_that_ends_early_scores_its_personal_models_in_the_end(
    name: str, tmp_path: Any
) -> None:
    """Also where it was interrupted after the round that ended it;
    as a trial that was meant to be so long.
    """
    from fedsweep.trial.checkpoint import CheckpointStore

    words = [*words_of(name), "rounds=5", "stop.target=0.01"]
    config = small(*words)
    store = CheckpointStore(str(tmp_path), config.key)
    for event in run_trial(config, digits(), make_split(digits(), config), checkpoints=store):
        if isinstance(event, RoundRecord) and event.round == 1:
            break
    again = list(run_trial(config, digits(), make_split(digits(), config), checkpoints=store))
    *_, last, whole = events_of(config)
    assert last.round == 1
    assert "3_clients/test_acc" not in last.metrics
    *_, meant = events_of(small(*words_of(name), "rounds=1"))
    found = [end.summary["client_test_acc"] for end in (again[-1], whole, meant)]
    assert found == [found[0]] * 3


def test_newcomers_that_have_not_joined_do_not_count() -> None:
    """Of 12 clients, each turned by an angle of its own, the last six come in round 2."""
    words = [*QUICK, "shift=rotation", "shift.groups=12", "shift.newcomers=0.5", "rounds=2"]
    _, _, _, last, result = events_of(small(*words))
    data = data_of(*words)
    model = result.models["global"]
    everyone = [accuracy(model, "logreg", data, group) for group in range(12)]
    assert last.metrics["1_global/acc"] == pytest.approx(np.mean(everyone))
    _, _, only, result = events_of(small(*words, "stop.target=0"))  # ends after round 1
    there = [accuracy(result.models["global"], "logreg", data, group) for group in range(6)]
    assert only.metrics["1_global/acc"] == pytest.approx(np.mean(there))
    assert only.metrics["3_clients/test_acc"] == pytest.approx(np.mean(there))


def test_clients_without_a_cluster_count_with_the_global_model() -> None:
    """StoCFL: who was not sampled yet has no cluster."""
    words = [
        *words_of("stocfl"),
        "rounds=1",
        "strategy.fraction_train=0.25",
        "strategy.merge_cosine=1",
    ]
    *_, last, result = events_of(small(*words))
    data, rows = data_of(*words), last.clients
    assert sum(cluster < 0 for cluster in rows["cluster"]) == 9
    expected = [
        accuracy(result.models["global" if c < 0 else f"cluster_{c}"], "logreg", data, 0)
        for c in rows["cluster"]
    ]
    assert last.metrics["3_clients/test_acc"] == pytest.approx(np.mean(expected))
    assert len(set(np.round(expected, 9))) > 1


@pytest.mark.parametrize("name", [*APART, "ditto"])
def test_who_was_not_evaluated_has_no_score_and_is_counted(name: str) -> None:
    words = [
        *words_of(name),
        "rounds=1",
        "strategy.fraction_train=0.25",
        "strategy.fraction_evaluate=0.25",
    ]
    *_, last = rounds_of(*words)
    known = len(
        {c for c, a in zip(last.clients["client"], last.clients["test_acc"], strict=True) if a == a}
    )
    assert 3 <= known < 12
    assert last.metrics["3_clients/without_test"] == 12 - known


# A figure without meaning


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_only_methods_that_have_a_global_model_print_its_accuracy(name: str) -> None:
    _, *rounds, result = events_of(small(*words_of(name)))
    has = name not in (*APART, "local", "fedper", "fedrep", "fedbn")
    assert [("1_global/acc" in r.metrics, "1_global/loss" in r.metrics) for r in rounds] == [
        (has, has)
    ] * 3
    assert ("acc" in result.summary) == ("global" in result.models) == has
    assert models_of(STRATEGIES[name]).has_global_model == has


# IFCA's clusters are those of the round


@pytest.mark.parametrize("name", ["ifca", "fedsoft"])
def test_a_rounds_clusters_are_chosen_by_training_loss_under_its_models(name: str) -> None:
    words = [
        *words_of(name),
        "rounds=1",
        "shift=rotation",
        "shift.groups=2",
        "strategy.num_clusters=3",
    ]
    *_, last, result = events_of(small(*words))
    data = data_of(*words)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.images.mean, data.images.std))
    nets = []
    for k in range(3):
        nets.append(build_model("logreg", digits().train_x.shape[1:], 10))
        nets[k].load_state_dict(
            {key: torch.from_numpy(v) for key, v in result.models[f"cluster_{k}"].items()}
        )
    for client, cluster in zip(last.clients["client"], last.clients["cluster"], strict=True):
        x, y = data.client(client, "train")
        images, labels = (
            (torch.from_numpy(x.copy()).float() / 255 - mean) / std,
            torch.from_numpy(y.copy()),
        )
        with torch.no_grad():
            losses = torch.stack(
                [
                    torch.nn.functional.cross_entropy(net(images), labels, reduction="none")
                    for net in nets
                ],
                1,
            )
        if name == "ifca":
            assert cluster == int(losses.mean(0).argmin())
        else:
            assert cluster == int(torch.bincount(losses.argmin(1), minlength=3).argmax())
    sizes = [last.clients["cluster"].count(k) for k in range(3)]
    assert [last.metrics[f"2_clusters/c{k}_size"] for k in range(3)] == sizes


# Replies that were used


def test_a_round_says_how_many_replies_were_used() -> None:
    *_, last = rounds_of(*QUICK, "strategy.fraction_train=0.5")
    assert (last.metrics["3_clients/asked"], last.metrics["3_clients/trained"]) == (6, 6)


@pytest.mark.parametrize("name", ["fedavg", "kmeans", "local", "ifca", "krum"])
def test_a_failing_client_is_asked_but_not_used(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsweep.client import app as client_app

    trained = client_app.BuiltinClient.train

    def breaks(self: Any, message: Any, context: Any) -> Any:
        if context.node_id == 3:
            raise OSError("no disk")
        return trained(self, message, context)

    monkeypatch.setattr(client_app.BuiltinClient, "train", breaks)
    words = [*words_of(name), "training.engine=sequential"]
    *_, last = rounds_of(*words)
    assert (last.metrics["3_clients/asked"], last.metrics["3_clients/trained"]) == (12, 11)
    assert last.metrics["6_load/failed_tasks"] == 1
    with pytest.raises(
        TrialError, match="11 of 12 clients trained, fewer than strategy.min_fit_fraction=0.95"
    ):
        rounds_of(*words, "strategy.min_fit_fraction=0.95")
