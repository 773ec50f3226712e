"""Attackers: by hand, against byzfl, as properties of all kinds, in trials, and what is refused."""

import re
from pathlib import Path
from typing import Any

import byzfl
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedsweep.catalog import CATALOG, Need
from fedsweep.data.adversary import Adversary
from fedsweep.data.federated import FederatedData
from fedsweep.engine.flower import empty_run, identify
from fedsweep.engine.grid import Trace
from fedsweep.errors import ConfigError, DataError
from fedsweep.records import RoundRecord, TaskRecord
from fedsweep.scenario.attack import Attacker
from fedsweep.scenario.attacks import ATTACKS, attack_of
from fedsweep.scenario.attacks.alie import largest_z
from fedsweep.scenario.shifts import shift_of
from fedsweep.strategies.layout import Layout
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.tracking.describe import trial_tags
from fedsweep.trial.attacked import forge
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.metrics import Ledger, capture, round_record
from fedsweep.trial.rounds import Round
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, outcome, small

ROOT = Path(__file__).resolve().parents[2]
KINDS = sorted(name for name in ATTACKS if ATTACKS[name].attacks)
HONEST = np.random.default_rng(0).standard_normal((7, 40)) + 1
OWN = np.random.default_rng(1).standard_normal((3, 40))
IMAGES = np.arange(5 * 16, dtype=np.uint8).reshape(5, 1, 4, 4)
LABELS = np.array([0, 1, 2, 2, 0])


def sent(name: str, honest: np.ndarray = HONEST, seed: int = 0, **settings: Any) -> np.ndarray:
    return attack_of(name, **settings).forge(honest, OWN, seed)


# Who


@pytest.mark.parametrize("name", KINDS)
def test_attackers_are_drawn_by_the_seed_alone(name: str) -> None:
    few, many = (attack_of(name, fraction=share) for share in (0.1, 0.3))
    drawn = few.attackers(50, seed=3)
    assert len(drawn) == 5
    assert drawn == attack_of("alie", fraction=0.1).attackers(50, seed=3)
    assert set(drawn) < set(many.attackers(50, seed=3))
    assert drawn != few.attackers(50, seed=4)
    assert attack_of(name, clients=(4, 1, 4)).attackers(50, seed=3) == (1, 4)
    assert attack_of("none").attackers(50, seed=3) == ()


# At the data


def test_labels_are_flipped_by_hand() -> None:
    x, y = attack_of("label_flip").poison(IMAGES, LABELS, 3, 0)
    assert (x is IMAGES, y.tolist()) == (True, [2, 1, 0, 0, 2])
    seen, wanted = attack_of("label_flip").goal(IMAGES, LABELS, 3)
    assert wanted.tolist() == [2, 0, 0, 2]  # class 1 stays what it is
    assert seen[:, 0, 0, 0].tolist() == [0, 32, 48, 64]
    some = attack_of("label_flip", source=2, target=1)
    assert some.poison(IMAGES, LABELS, 3, 0)[1].tolist() == [0, 1, 1, 1, 0]
    assert some.goal(IMAGES, LABELS, 3)[1].tolist() == [1, 1]
    assert attack_of("label_flip", source=2).poison(IMAGES, LABELS, 3, 0)[1].tolist() == [
        0, 1, 0, 0, 0,
    ]  # fmt: skip


def test_random_labels_are_of_all_classes_and_the_same_in_each_round() -> None:
    labels = np.zeros(3000, np.int64)
    drawn = [attack_of("random_labels").poison(IMAGES, labels, 3, seed)[1] for seed in (1, 1, 2)]
    np.testing.assert_allclose(np.bincount(drawn[0]) / 3000, 1 / 3, atol=0.03)
    assert drawn[0].tolist() == drawn[1].tolist() != drawn[2].tolist()


def test_a_trigger_by_hand() -> None:
    backdoor = attack_of("backdoor", target=2, share=0.4, size=2)
    x, y = backdoor.poison(IMAGES, LABELS, 3, 0)
    white = [i for i in range(5) if (x[i, 0, 2:, 2:] == 255).all()]
    assert len(white) == 2
    assert y[white].tolist() == [2, 2]
    others = [i for i in range(5) if i not in white]
    assert (x[others] == IMAGES[others]).all()
    assert y[others].tolist() == LABELS[others].tolist()
    assert (x[white, 0, :2] == IMAGES[white, 0, :2]).all()
    assert IMAGES.max() == 79  # copies were marked
    seen, wanted = backdoor.goal(IMAGES, LABELS, 3)
    assert wanted.tolist() == [2, 2, 2]
    assert (seen[:, 0, 2:, 2:] == 255).all()
    assert seen[:, 0, 0, 0].tolist() == [0, 16, 64]


def test_what_can_not_be_done_with_the_data_is_refused_before_anybody_trains() -> None:
    for words, match in (
        (["attack=backdoor", "attack.target=10"], "attack.target=10: the data set has classes 0"),
        (["attack=backdoor", "attack.size=8"], "attack.size=8 covers images of 8 x 8"),
        (["attack=label_flip", "attack.source=12"], "attack.source=12: the data set has classes"),
    ):
        with pytest.raises(DataError, match=match):
            make_split(digits(), small(*words))


# At what they send


def test_updates_by_hand() -> None:
    honest, own = np.array([[1.0, 2.0], [3.0, 2.0]]), np.array([[4.0, -1.0]])
    by_name = {
        ("sign_flip", ("scale", 2.0)): [-8, 2],
        ("ipm", ("eps", 0.5)): [-1, -1],
        ("alie", ("z", 2.0)): [2 - 2 * 2**0.5, 2],
        ("backdoor", ("scale", 3.0)): [12, -3],
        ("backdoor", ("replace", True)): [12, -3],  # three clients, one attacker
        # Along the deviation (1, 0): the far one of both is 2 away from 2 - gamma at gamma = 1.
        ("min_max", ("perturbation", "std")): [1, 2],
        # 2 gamma^2 + 2 <= 4.
        ("min_sum", ("perturbation", "std")): [1, 2],
    }
    for (name, (key, value)), row in by_name.items():
        np.testing.assert_allclose(
            attack_of(name, **{key: value}).forge(honest, own, 0), [row], rtol=1e-12
        )


def test_z_by_hand() -> None:
    """Of 50 clients 24 are attackers: s = 2, and 24 of 26 lie below 1.43 (the paper's example)."""
    assert largest_z(50, 24) == pytest.approx(1.426, abs=1e-3)
    assert largest_z(10, 2) == 0  # half of the honest ones lie below the mean
    assert largest_z(5, 4) == largest_z(2, 1) == 0


@pytest.mark.parametrize("size", [3, 20])
def test_byzfl_sends_the_same(size: int) -> None:
    honest = np.random.default_rng(size).standard_normal((size, 300)) * 3
    for ours, theirs in (
        (sent("alie", honest, z=1.5), byzfl.ALittleIsEnough(tau=-1.5)),
        (sent("ipm", honest, eps=0.7), byzfl.InnerProductManipulation(tau=0.7)),
        (attack_of("sign_flip").forge(honest, honest.mean(0)[None], 0), byzfl.SignFlipping()),
    ):
        for row in ours:
            np.testing.assert_allclose(row, theirs(honest), atol=1e-6, rtol=0)


def test_noise_is_drawn_for_each_attacker_and_round() -> None:
    own = np.zeros((2, 20_000))
    noise = attack_of("gaussian", std=3).forge(HONEST, own, 5)
    np.testing.assert_allclose(noise.std(axis=1), 3, rtol=0.02)
    assert abs(np.corrcoef(noise)[0, 1]) < 0.03
    again, other = (attack_of("gaussian", std=3).forge(HONEST, own, seed) for seed in (5, 6))
    assert (noise == again).all()
    assert (noise != other).any()


@pytest.mark.parametrize("perturbation", ["std", "unit", "sign"])
@pytest.mark.parametrize("size", [2, 3, 9])
def test_the_farthest_attackers_go_just_as_far_as_they_may(perturbation: str, size: int) -> None:
    honest = np.random.default_rng(size).standard_normal((size, 30)) + 0.3
    between = ((honest[:, None] - honest[None]) ** 2).sum(-1)
    mean = honest.mean(axis=0)
    for name, most, reach in (
        ("min_max", between.max(), np.max),
        ("min_sum", between.sum(axis=1).max(), np.sum),
    ):
        row = sent(name, honest, perturbation=perturbation)[0]
        step = (row - mean) * 1e-6

        def reached(place: np.ndarray, reach: Any = reach) -> float:
            return float(reach(((place - honest) ** 2).sum(axis=1)))

        assert reached(row) <= most * (1 + 1e-9)
        assert reached(row + step) > most
        assert np.linalg.norm(row - mean) > 0


@pytest.mark.parametrize("name", [n for n in KINDS if attack_of(n).at_replies])
def test_with_nobody_or_one_to_hide_among_what_is_sent_is_finite(name: str) -> None:
    for honest in (HONEST[:0], HONEST[:1], np.zeros((3, 40))):
        found = sent(name, honest)
        assert found.shape == OWN.shape
        assert np.isfinite(found).all()


LAYOUT = Layout(("w",), averaged=("m",), carried=("n",))


def model(w: list[float], m: float = 0.0, n: int = 0) -> ArrayRecord:
    values = {"m": np.float32([m]), "w": np.float32(w), "n": np.array(n)}
    return ArrayRecord({key: Array(value) for key, value in values.items()})


def test_the_honest_mean_is_the_cohorts_and_each_moves_the_model_that_it_began_with() -> None:
    """Clients 1 and 2 (honest) moved by 2 and 4; client 3 began at 10, client 4 chose model-1."""
    identify(empty_run())
    starts = {1: model([0]), 2: model([100]), 3: model([10])}
    contents = {node: RecordDict({"arrays": start}) for node, start in starts.items()}
    contents[4] = RecordDict({"model-0": model([-5]), "model-1": model([50])})
    contents[5] = RecordDict({"arrays": model([0])})
    moved = {1: [2.0], 2: [104.0], 3: [11.0], 4: [51.0], 5: [float("nan")]}
    replies = []
    for node, w in moved.items():
        message = Message(contents[node], node, "train")
        content = {"arrays": model(w, m=node, n=node), "metrics": MetricRecord({"n": 1})}
        replies.append(Message(RecordDict(content), reply_to=message))
    replies[3].content["choice"] = ConfigRecord({"cluster": 1})
    adversary = Adversary(attack_of("ipm", eps=2.0), (2, 3), 3, 0)
    forge(adversary, LAYOUT, 1, contents, replies)
    arrays = [reply.content["arrays"] for reply in replies]
    assert [a["w"].numpy().tolist() for a in arrays[:4]] == [[2], [104], [4], [44]]
    assert [(a["m"].numpy().item(), a["n"].numpy().item()) for a in arrays] == [
        (n, n) for n in range(1, 6)
    ]
    assert [list(a) for a in arrays] == [["m", "w", "n"]] * 5


def test_of_clients_that_train_all_models_all_are_forged() -> None:
    """Each model from where it was sent: honest updates (1, 2) and (3, 4), turned and doubled."""
    identify(empty_run())
    content = RecordDict({"model-0": model([10]), "model-1": model([20])})
    replies = []
    for node, (one, two) in {1: (11, 22), 2: (13, 24), 3: (0, 0)}.items():
        told = {"model-0": model([one]), "model-1": model([two]), "metrics": MetricRecord({"n": 1})}
        told["choice"] = ConfigRecord({"cluster": 1})
        replies.append(Message(RecordDict(told), reply_to=Message(content, node, "train")))
    adversary = Adversary(attack_of("ipm", eps=2.0), (2,), 3, 0)
    forge(adversary, LAYOUT, 1, dict.fromkeys((1, 2, 3), content), replies)
    forged = [[r.content[f"model-{k}"]["w"].numpy().item() for k in (0, 1)] for r in replies]
    assert forged == [[11, 22], [13, 24], [10 - 2 * 2, 20 - 2 * 3]]


# Labels that are wrong


def test_a_client_has_as_many_wrong_labels_as_its_group_and_they_are_not_held_out() -> None:
    words = ["shift=label_noise", "shift.groups=3", "shift.rate=0.6", "partition.eval_fraction=0.5"]
    images = digits()
    for noise in ("symmetric", "pair"):
        data = FederatedData.build(images, small(*words, f"shift.noise={noise}"))
        for client in range(8):
            x, y = data.client(client, "train")
            right = images.train_y[data.train_rows[client]]
            rate = [0, 0.3, 0.6][client % 3]
            assert (y != right).sum() == round(rate * len(y))
            assert (x == images.train_x[data.train_rows[client]]).all()
            assert (data.client(client, "eval")[1] == images.train_y[data.eval_rows[client]]).all()
            steps = set(((y - right) % 10)[y != right].tolist())
            assert steps <= {1} if noise == "pair" else len(steps) >= 3 * (rate > 0)
            counts = np.bincount(y, minlength=10)
            assert (data.label_counts()[client] == counts).all()
        assert (data.test(2)[1] == images.test_y).all()
    assert shift_of("label_noise", groups=1, rate=0.5).rate_of(0) == 0.5


# What is said


def test_clients_are_the_honest_ones() -> None:
    """Everywhere: means, the worst, what is counted, clusters' agreement; attackers are marked."""
    words = ["model=logreg", "strategy=kmeans", "strategy.num_clusters=2", "shift=rotation",
             "shift.groups=2", "attack=label_flip", "attack.clients=[1,4]"]  # fmt: skip
    *_, last, result = events_of(small(*words))
    rows = {key: np.array(values) for key, values in last.clients.items()}
    assert rows["client"][rows["attacker"]].tolist() == [1, 4]
    assert np.isnan(rows["eval_acc"][[1, 4]]).all()
    assert np.isnan(rows["test_acc"][[1, 4]]).all()
    assert np.isfinite(rows["train_loss"]).all()
    honest = ~rows["attacker"]
    for key, values in (
        ("acc", rows["eval_acc"]), ("test_acc", rows["test_acc"]),
        ("train_loss", rows["train_loss"]), ("test_loss", rows["test_loss"]),
    ):  # fmt: skip
        assert last.metrics[f"3_clients/{key}"] == pytest.approx(values[honest].mean())
    assert "3_clients/without_test" not in last.metrics
    assert result.summary["client_acc"] == last.metrics["3_clients/acc"]
    assert last.metrics["3_clients/attackers"] == 2


def test_the_success_of_an_attack_is_how_often_models_say_what_it_wants() -> None:
    """A linear model's own answers, of the final weights."""
    config = small("model=logreg", "attack=backdoor", "attack.replace=true", "attack.target=3")
    *_, last, result = events_of(config)
    images = digits()
    others = images.test_y != 3
    x = images.test_x[others].copy()
    x[:, :, -3:, -3:] = 255
    mean, std = (np.reshape(v, (1, -1, 1, 1)) for v in (images.mean, images.std))
    weights, bias = result.models["global"].values()
    logits = ((x / 255 - mean) / std).reshape(len(x), -1) @ weights.T + bias
    success = float((logits.argmax(axis=1) == 3).mean())
    assert success > 0.5
    assert last.metrics["1_global/attack_success"] == pytest.approx(success, abs=1e-3)
    assert last.metrics["3_clients/attack_success"] == pytest.approx(success, abs=1e-3)
    assert result.summary["attack_success"] == last.metrics["1_global/attack_success"]
    assert result.summary["client_attack_success"] == pytest.approx(success, abs=1e-3)


def test_the_success_on_clients_is_that_on_the_models_that_they_use() -> None:
    """APFL with alpha 0 uses the global model. Under Local half of them attack themselves alone."""
    attack = ["model=logreg", "attack=backdoor", "attack.target=3", "attack.fraction=0.5"]
    shared = [*attack, "strategy=apfl", "strategy.alpha=0", "strategy.adaptive=false"]
    *_, first, last, result = events_of(small(*shared))
    assert "3_clients/attack_success" not in first.metrics  # own models are scored in the last
    success = last.metrics["1_global/attack_success"]
    assert success > 0.5
    assert last.metrics["3_clients/attack_success"] == pytest.approx(success)
    assert result.summary["client_attack_success"] == last.metrics["3_clients/attack_success"]

    *_, alone, _ = events_of(small(*attack, "strategy=local"))
    assert alone.metrics["3_clients/attack_success"] < 0.2
    assert "1_global/attack_success" not in alone.metrics


@pytest.mark.parametrize("strategy", ["fedavg", "ditto"])
def test_groups_without_what_is_aimed_at_have_no_success(strategy: str) -> None:
    """Four groups share the classes out: not all have ones, which are to be called sevens."""
    words = ["attack=label_flip", "attack.source=1", "attack.target=7", "shift=label_groups",
             "shift.groups=4", "model=logreg", f"strategy={strategy}"]  # fmt: skip
    *_, last, result = events_of(small(*words))
    images = digits()
    x = images.test_x[images.test_y == 1] / 255
    mean, std = (np.reshape(v, (1, -1, 1, 1)) for v in (images.mean, images.std))
    weights, bias = result.models["global"].values()
    logits = ((x - mean) / std).reshape(len(x), -1) @ weights.T + bias
    success = float((logits.argmax(axis=1) == 7).mean())
    assert last.metrics["1_global/attack_success"] == pytest.approx(success, abs=1e-3)
    assert 0 <= last.metrics["3_clients/attack_success"] <= 1
    if strategy == "fedavg":
        assert last.metrics["3_clients/attack_success"] == pytest.approx(success, abs=1e-3)


def test_the_success_on_own_models_is_there_where_a_trial_ended_early() -> None:
    words = ["model=logreg", "strategy=ditto", "attack=backdoor", "attack.target=3"]
    stop = ["stop.metric=1_global/acc", "stop.target=0.01"]
    *_, last, result = events_of(small(*words, *stop))
    assert (last.round, "3_clients/attack_success" in last.metrics) == (1, False)
    *_, whole, _ = events_of(small(*words, "rounds=1"))
    expected = whole.metrics["3_clients/attack_success"]
    assert result.summary["client_attack_success"] == pytest.approx(expected)


def test_who_captures_a_cluster_by_hand() -> None:
    """Nodes 1, 2 attack: alone in cluster 0; two of three in it; spread evenly."""
    alone = capture({1: 0, 2: 0, 3: 1, 4: 1}, {1, 2})
    assert alone == pytest.approx({"attackers_ari": 1, "attackers_apart": 1, "captured": 0})
    most = capture({1: 0, 2: 0, 3: 0, 4: 1}, {1, 2})
    assert (most["attackers_apart"], most["captured"]) == (0, 0.5)
    even = capture({1: 0, 2: 1, 3: 0, 4: 1}, {1, 2})
    assert (even["captured"], even["attackers_ari"] < 0) == (0, True)
    assert set(capture({3: 0}, {1})) == {"attackers_ari", "captured"}


def test_attackers_found_by_hand() -> None:
    """Nodes 1, 2, 3 attack; 3 was not asked; 2 and the honest 4 and 5 were left out."""
    tasks = [TaskRecord(n, "train", "h", 1.0, 0, 0, {"num-examples": 1}, {}) for n in (1, 2, 4, 5)]
    done = Round(1, ArrayRecord(), None, None, Trace(tasks), Trace([]), {}, asked=4, used=4)
    found = round_record(
        done, np.zeros(5, int), None, None, Ledger(), 1.0,
        attackers=frozenset({1, 2, 3}), accused=frozenset({2, 4, 5}),
    ).metrics  # fmt: skip
    assert found["3_clients/attackers"] == 1
    assert found["3_clients/attackers_recall"] == 1 / 2
    assert found["3_clients/attackers_precision"] == pytest.approx(1 / 3)


def test_krum_leaves_out_all_but_one_and_says_so() -> None:
    words = ["strategy=multikrum", "strategy.num_malicious_nodes=2", "model=logreg"]
    *_, last, _ = events_of(small(*words, "attack=gaussian", "strategy.num_nodes_to_select=4"))
    assert last.metrics["3_clients/attackers_recall"] == 1
    assert last.metrics["3_clients/attackers_precision"] == 2 / 4
    assert last.metrics["3_clients/attackers"] == 0


def test_who_attacks_is_recorded_and_the_trial_is_another_one() -> None:
    config = small("attack=ipm", "attack.clients=[5,2]")
    assert trial_tags(config, "name", "command")["attackers"] == "2, 5"
    assert "attackers" not in trial_tags(small(), "name", "command")
    first = events_of(small("attack=ipm", "attack.clients=[5,2]", "model=logreg", "rounds=1"))[1]
    assert first.events[0].startswith("attack=ipm by 2 clients: 2, 5; what is said of clients")
    keys = {small(*words).key for words in ([], ["attack=ipm"], ["attack=ipm", "attack.eps=1"])}
    assert len(keys) == 3
    assert small("attack=ipm", "attack.clients=[2,5,2]").key == config.key
    assert small("attack=none").key == small().key
    assert config.is_problem("attack.eps")


def test_every_metric_of_attackers_needs_some() -> None:
    for metric in CATALOG:
        if "attack" in metric.key or "captured" in metric.key:
            assert {Need.ATTACKERS, Need.GOAL} & set(metric.all_needs), metric.key


# Trials

WITH: dict[str, list[str]] = {
    "part of the clients": ["strategy.fraction_train=0.5"],
    "clusters": ["strategy=kmeans", "strategy.num_clusters=2", "strategy.server.mode=simulated"],
    "stale": ["devices=lognormal", "schedule=fedbuff", "schedule.buffer=3"],
    "a part of the model": ["strategy=fedper", "model=mlp"],
    "chosen models": ["strategy=ifca", "strategy.num_clusters=2"],
    "control variates": ["strategy=scaffold", "training.lr=0.01"],
    "noise": ["privacy=fixed_client", "privacy.strict=false"],
}


@pytest.mark.parametrize("attack", KINDS)
def test_each_attack_repeats_to_the_bit_in_other_chunks_and_goes_on(
    attack: str, tmp_path: Path
) -> None:
    words = ["model=logreg", "training.engine=sequential", f"attack={attack}"]
    config = small(*words)
    expected = outcome(events_of(config))
    assert outcome(events_of(small(*words, "resources.chunk_size=1"))) == expected
    assert expected[0] != outcome(events_of(small(*words[:2])))[0]

    def events() -> Any:
        store = CheckpointStore(str(tmp_path), config.key)  # as another process would open it
        return run_trial(config, digits(), make_split(digits(), config), checkpoints=store)

    for event in events():
        if isinstance(event, RoundRecord) and event.round == 2:
            break
    assert outcome(list(events())) == expected


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("attack", ["alie", "backdoor"])
def test_attackers_go_with_the_rest_and_change_what_comes_out(name: str, attack: str) -> None:
    words = ["model=logreg", *WITH[name]]
    attacked = small(*words, f"attack={attack}", "attack.fraction=0.4")
    one, other = (outcome(events_of(attacked)) for _ in range(2))
    assert one == other
    honest = outcome(events_of(small(*words)))[1][-1]
    assert one[1][-1]["3_clients/test_loss"] != pytest.approx(honest["3_clients/test_loss"])
    assert np.isfinite(one[1][-1]["3_clients/acc"])


def test_an_attack_of_ones_own(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "adversaries.md").read_text()
    [own] = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "late.py").write_text(own)
    where = f"attack={tmp_path}/late.py"
    *_, last, _ = events_of(small(where, "attack.factor=50", "model=logreg"))
    assert last.metrics["1_global/acc"] < 0.7  # .93 without
    (tmp_path / "idle.py").write_text(
        "from fedsweep.scenario.attack import Attacker\n\n\nclass Idle(Attacker):\n    '''.'''\n"
    )
    with pytest.raises(ConfigError, match=r"overrides neither poison\(\) nor forge\(\)"):
        compose([f"attack={tmp_path}/idle.py"])


def test_an_attack_that_gives_something_else_is_named() -> None:
    class Short(Attacker):
        def poison(self, x: Any, y: Any, num_classes: int, seed: int) -> Any:
            return x[:1], y[:1]

        def forge(self, honest_HP: Any, own_BP: Any, seed: int) -> Any:
            return own_BP[0]

    adversary = Adversary(Short(name="short"), (0,), 3, 0)
    with pytest.raises(DataError, match=r"attack=short: poison\(\) gave 1 examples for 5"):
        adversary.poison(0, IMAGES, LABELS)
    with pytest.raises(ValueError, match=r"test_attacks.py:\d+: .*Short.forge gave"):
        adversary.forge(1, HONEST, OWN)
    assert adversary.poison(1, IMAGES, LABELS)[0] is IMAGES


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["attack=bribe"], "unknown attack 'bribe'"),
        (["attack=alie", "attack.fraction=0.01"], "attack.fraction=0.01 of num_clients=10 is no"),
        (["attack=alie", "attack.fraction=0.99"], "is all of them, and nobody is left"),
        (["attack=alie", "attack.clients=[10]"], "attack.clients has 10, and clients are 0 to 9"),
        (["attack=alie", "num_clients=2", "attack.clients=[0,1]"], "are all 2 clients"),
        (["attack=alie", "attack.clients=[1]", "attack.fraction=0.3"], "attack.fraction"),
        (["attack=alie", "attack.clients=[]"], "attack.clients is empty; name some, or leave it"),
        (["attack=alie", "strategy=local"], "those of strategy=local send nothing; set an attack"),
        (["attack=ipm", "compression=topk"], "attack=ipm with compression=topk: a forged update"),
        (["attack=ipm", "attack.z=1"], "attack.z"),
        (["attack.fraction=0.2"], "attack.fraction"),
        (
            ["stop.target=0.9", "stop.metric=1_global/attack_success", "attack=ipm"],
            "attack=ipm aims at no labels",
        ),
        (
            ["stop.target=0.9", "stop.metric=3_clients/attackers_recall", "attack=ipm"],
            "strategy=fedavg leaves no reply out",
        ),
        (["stop.target=0.9", "stop.metric=2_clusters/captured", "strategy=kmeans"], "attack=none"),
        (
            [
                "stop.target=0.9",
                "stop.metric=3_clients/attack_success",
                "attack=backdoor",
                "strategy=ditto",
            ],
            "not before the last round under strategy=ditto; set evaluate_personal=always",
        ),
    ],
)
def test_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        compose(words)
    assert "\n" not in str(caught.value)
