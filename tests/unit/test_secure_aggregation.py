"""Secure aggregation: its sums by hand, what fails, and whole trials beside plain means."""

from dataclasses import replace
from pathlib import Path
from shutil import copy
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from fedsweep.cli import main
from fedsweep.engine.grid import EngineGrid
from fedsweep.errors import ConfigError, TrialError
from fedsweep.records import RoundRecord
from fedsweep.scenario.masking import MASKED, Masking, NoSumError
from fedsweep.strategies import STRATEGIES
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.summed import Summed
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, network_of, outcome, small

SIZE, ROUND = 4000, 7
PLAIN = Masking(bits=22, clipping_range=8.0, neighbours=2, threshold=0.6, heaviest=40.0, seed=3)
NODES = [2, 3, 5, 7, 8, 11, 12, 20]
WEIGHTS = {node: 2.0 * node for node in NODES}
ON = ["secure_aggregation=true", "model=logreg"]


def update_of(node: int) -> np.ndarray:
    return np.random.default_rng(node).normal(0, 0.5, SIZE)


def sent_by(
    masking: Masking, nodes: list[int], model: Any = lambda node: 0, models: int = 1
) -> Any:
    found = {}
    for node in nodes:
        which = model(node), models
        numbers = masking.numbers(update_of(node), WEIGHTS[node], *which, node, ROUND)
        found[node] = masking.masked(numbers, node, NODES, ROUND)
    return found


def mean_of(nodes: list[int]) -> np.ndarray:
    weights = [WEIGHTS[node] for node in nodes]
    return np.average([update_of(node) for node in nodes], axis=0, weights=weights)


# The arithmetic


@pytest.mark.parametrize("gone", [[], [5], [2, 20]])
@pytest.mark.parametrize("bits", [12, 22])
def test_the_sum_is_the_mean_of_those_that_replied(bits: int, gone: list[int]) -> None:
    """Off by less than a level a client; and by as much as it says, which is an RMS error."""
    masking = replace(PLAIN, bits=bits)
    there = [node for node in NODES if node not in gone]
    sums = masking.opened(sent_by(masking, there), NODES, 1, ROUND)
    off = sums.means_KP[0] - mean_of(there)
    total = sum(WEIGHTS[node] for node in there)
    shares = sum(round(WEIGHTS[n] / 40 * 2**bits) / 2**bits for n in there)
    assert np.abs(off).max() <= len(there) * masking.step / shares + 2 / 2**bits
    assert np.sqrt(np.mean(off**2)) == pytest.approx(sums.error, rel=0.1)
    assert abs(off.mean()) < 4 * sums.error / np.sqrt(SIZE) + 2 / 2**bits  # unbiased
    assert sums.weights_K == pytest.approx([total], rel=2.0 ** (1 - bits))
    assert (sums.missing, sums.clipped) == (len(gone), 0)


def test_by_hand() -> None:
    """L = 8, C = 1: weights 1 and 1/2 of the most; updates of whole steps lose nothing."""
    masking = Masking(3, 1.0, 1, 1.0, heaviest=2.0, seed=0)
    one = masking.numbers(np.array([0.5, -0.25]), 2.0, 0, 1, 1, 1)
    two = masking.numbers(np.array([1.0, 9.0]), 1.0, 0, 1, 2, 1)  # halved: 1/2, and 4.5 cut to 1
    assert one.tolist() == [8, 0, 0, 6, 3]
    assert two.tolist() == [4, 4, 0, 6, 8]
    masked = {1: masking.masked(one, 1, [1, 2], 1), 2: masking.masked(two, 2, [1, 2], 1)}
    sums = masking.opened(masked, [1, 2], 1, 1)
    np.testing.assert_allclose(sums.means_KP, [[1 / 1.5, 0.75 / 1.5]])
    assert (sums.weights_K.tolist(), sums.clipped, sums.error) == ([3.0], 0.25, 0.0)


def test_a_client_of_few_examples_is_in_the_sum() -> None:
    """L = 4: of 1 and 100 examples the first has less than half a step, and weighs one."""
    masking = Masking(2, 1.0, 1, 1.0, heaviest=100.0, seed=0)
    one = masking.numbers(np.array([1.0]), 1.0, 0, 1, 1, 1)
    two = masking.numbers(np.array([0.0]), 100.0, 0, 1, 2, 1)
    assert (one[0], two[0]) == (1, 4)
    masked = {1: masking.masked(one, 1, [1, 2], 1), 2: masking.masked(two, 2, [1, 2], 1)}
    assert masking.opened(masked, [1, 2], 1, 1).weights_K.tolist() == [125.0]


def test_what_is_sent_says_nothing_of_one_client() -> None:
    """Masked integers are spread evenly, whatever the update; and no client's alone is opened."""
    for sent in sent_by(PLAIN, NODES).values():
        counts = np.histogram(sent, 16, (0, 2**32))[0]
        assert ((counts - len(sent) / 16) ** 2 / (len(sent) / 16)).sum() < 45  # chi^2, 15: 1e-4
    numbers = PLAIN.numbers(update_of(2), 4.0, 0, 1, 2, ROUND)
    for others in ([9], [3, 9]):  # alone with one more, too
        assert (PLAIN.masked(numbers, 2, [2, *others], ROUND) != numbers).mean() > 0.99


def test_of_several_models_each_has_its_sum() -> None:
    """Who chose which is in no array; a model that nobody chose did not move."""
    chosen = {node: int(node > 7) for node in NODES}
    sums = PLAIN.opened(sent_by(PLAIN, NODES, chosen.get, 3), NODES, 3, ROUND)
    for model in (0, 1):
        members = [node for node in NODES if chosen[node] == model]
        np.testing.assert_allclose(sums.means_KP[model], mean_of(members), atol=1e-4)
        assert sums.weights_K[model] == pytest.approx(sum(WEIGHTS[node] for node in members), 1e-5)
    assert not sums.means_KP[2].any()
    assert sums.weights_K[2] == 0


def test_beyond_the_threshold_nothing_is_opened() -> None:
    """Each has four neighbours: of five shares three are needed, and who is gone has shares too."""
    sent = sent_by(PLAIN, NODES)
    with pytest.raises(NoSumError, match="1 of 8 clients replied, and a sum of one would be"):
        PLAIN.opened({2: sent[2]}, NODES, 1, ROUND)
    circle = PLAIN.circle(NODES, ROUND)
    assert all(len(others) == 4 and node not in others for node, others in circle.items())
    gone = circle[5][:3]  # of client 4 and its four neighbours two are left
    with pytest.raises(NoSumError, match=r"5 of 8 .* are left, fewer than 3 \(secagg.threshold"):
        PLAIN.opened({n: v for n, v in sent.items() if n not in gone}, NODES, 1, ROUND)
    lax = replace(PLAIN, threshold=0.2)
    there = {n: v for n, v in sent.items() if n not in gone}
    np.testing.assert_allclose(
        lax.opened(there, NODES, 1, ROUND).means_KP[0], mean_of([*there]), atol=1e-4
    )


def test_an_update_that_is_no_number_is_not_masked() -> None:
    with pytest.raises(ValueError, match="not finite can't be masked"):
        PLAIN.numbers(np.array([1.0, np.nan]), 1.0, 0, 1, 1, 1)


# In trials


def losses(events: list[Any]) -> np.ndarray:
    key = "3_clients/test_loss"
    return np.array([record.metrics[key] for record in events[2:-1]])


@pytest.mark.parametrize("method", STRATEGIES.of_sums())
def test_methods_of_sums_learn_what_they_learn_without(method: str) -> None:
    """Two of three train a round; what integers lose is logged, and little."""
    words = [f"strategy={method}", f"model={network_of(method, 'logreg')}", "shift=rotation",
             "shift.groups=2", "evaluate_personal=always", "num_clients=12",
             "strategy.fraction_train=0.75", "training.lr=0.01", "rounds=2"]  # fmt: skip
    if method in ("ifca", "hierfavg"):
        words.append("strategy.num_clusters=2")
    plain = events_of(small(*words))
    hidden = events_of(small(*words, "secure_aggregation=true", "secagg.bits=24"))
    np.testing.assert_allclose(losses(hidden), losses(plain), rtol=2e-3)
    for record in hidden[2:-1]:
        assert 0 < record.metrics["3_clients/sum_error"] < 1e-2
        assert record.metrics["3_clients/sum_clipped"] == 0
        assert record.metrics["3_clients/trained"] == 9
        assert 2 <= record.metrics["3_clients/sum_smallest"] <= 9


def test_the_error_is_that_against_the_plain_mean() -> None:
    """One round of few bits: the models differ by as much as the round says."""
    words = ["model=logreg", "rounds=1"]
    still = events_of(small(*words, "training.lr=1e-30"))  # the model that they begin with
    plain = events_of(small(*words))
    hidden = events_of(small(*words, "secure_aggregation=true", "secagg.bits=10"))
    start, exact, found = (
        np.concatenate([a.ravel() for a in events[-1].models["global"].values()])
        for events in (still, plain, hidden)
    )
    relative = np.linalg.norm(found - exact) / np.linalg.norm(found - start)
    assert hidden[2].metrics["3_clients/sum_error"] == pytest.approx(relative, rel=0.1)
    assert relative > 0.01


@pytest.mark.parametrize("engine", ["sequential", "vectorized"])
def test_it_repeats_to_the_bit_in_other_chunks_and_after_a_kill(
    engine: str, tmp_path: Path
) -> None:
    words = [*ON, "strategy=fedavgm", f"training.engine={engine}"]
    config = small(*words)
    expected = outcome(events_of(config))
    assert outcome(events_of(small(*words, "resources.chunk_size=3"))) == expected

    def events() -> Any:
        store = CheckpointStore(str(tmp_path), config.key)
        return run_trial(config, digits(), make_split(digits(), config), checkpoints=store)

    for event in events():
        if isinstance(event, RoundRecord) and event.round == 2:
            break
    assert outcome(list(events())) == expected


def with_failing(monkeypatch: pytest.MonkeyPatch, gone: set[int]) -> list[Message]:
    """Have clients' replies lost, and return what the server sees of the others."""
    seen: list[Message] = []
    receive = EngineGrid.receive

    def some(self: EngineGrid, ids: Any, **kwargs: Any) -> list[Message]:
        replies = receive(self, ids, **kwargs)
        masked = [r for r in replies if "arrays" in r.content.array_records and is_masked(r)]
        kept = [r for r in replies if r not in masked or r.metadata.src_node_id not in gone]
        seen.extend(r for r in masked if r in kept)
        return kept

    monkeypatch.setattr(EngineGrid, "receive", some)
    return seen


def is_masked(reply: Message) -> bool:
    record: ArrayRecord = reply.content.array_records["arrays"]
    return MASKED in record


def test_a_server_is_sent_integers_and_goes_without_who_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = with_failing(monkeypatch, {3})
    events = events_of(small(*ON))
    assert len(seen) == 3 * 7
    assert all([*r.content["arrays"]] == [MASKED] for r in seen)
    assert [record.metrics["3_clients/sum_missing"] for record in events[2:-1]] == [1] * 3
    assert [record.metrics["3_clients/trained"] for record in events[2:-1]] == [7] * 3
    assert events[-1].summary["acc"] > 0.5


def test_a_round_that_can_not_be_opened_fails_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with_failing(monkeypatch, {1, 2, 3, 4})
    with pytest.raises(TrialError, match=r"0 of 8 clients trained.*: secure aggregation: 4 of 8"):
        events_of(small(*ON))
    events = events_of(small(*ON, "strategy.min_fit_fraction=0"))
    assert all(record.metrics["3_clients/trained"] == 0 for record in events[2:-1])
    assert all(any("secure aggregation: 4 of 8" in e for e in r.events) for r in events[2:-1])
    assert events[2].metrics["1_global/loss"] == events[1].metrics["1_global/loss"]
    fit = events_of(small(*ON, "secagg.threshold=0.5"))
    assert fit[-1].summary["acc"] > 0.5


def test_what_is_cut_off_and_what_is_seen_is_said() -> None:
    events = events_of(small(*ON, "secagg.clipping_range=0.001", "rounds=1"))
    assert events[2].metrics["3_clients/sum_clipped"] > 0
    assert any("cut off; raise secagg.clipping_range" in line for line in events[2].events)
    assert any("the server learns the sum of a round's updates" in e for e in events[1].events)
    chosen = events_of(small(*ON, "strategy=ifca", "strategy.num_clusters=8", "rounds=1"))
    assert any("a sum of updates per model, and who chose which" in e for e in chosen[1].events)
    alone = chosen[2].metrics["3_clients/sum_smallest"] == 1
    assert alone == any("alone chose model" in line for line in chosen[2].events)


def test_what_the_server_learns_is_said_before_the_start_and_once(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Of those trials of a sweep that sum, each kind in one line."""
    words = ["secure_aggregation=false,true", "model=logreg", "num_clients=8"]
    assert main(["sweep", *words, "strategy=fedavg,ifca", "seed=0,1", "--dry-run"]) == 0
    said = [line for line in capfd.readouterr().err.splitlines() if "the server learns" in line]
    ends = "hide nothing from who knows it (2 of 8 trials)"
    assert [line.partition(";")[0].rpartition("learns ")[2] for line in said] == [
        "the sum of a round's updates",
        "a sum of updates per model, and who chose which, as clients tell it",
    ]
    assert all(line.endswith(ends) for line in said)


def test_a_run_says_once_what_the_server_learns(
    tmp_path: Path, template: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    copy(template, tmp_path / "mlflow.db")
    where = ["resources=inline", f"tracking.output={tmp_path}", "tracking.figures=none"]
    assert main(["run", *ON, *where, "num_clients=4", "rounds=1"]) == 0
    told = capfd.readouterr()
    assert (told.out + told.err).count("the server learns") == 1


def test_a_network_with_statistics_has_these_averaged_and_its_counters_as_sent() -> None:
    words = ["strategy=fedavg", "model=tests.networks.NormedMLP"]
    plain, hidden = (events_of(small(*words, *more)) for more in ([], ["secure_aggregation=true"]))
    models = [events[-1].models["global"] for events in (plain, hidden)]
    for name, value in models[0].items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(models[1][name], value, atol=1e-2)
        else:
            assert not models[1][name].any()


def test_a_summed_delivery_keeps_no_state() -> None:
    """A checkpoint needs none of it: see the test of a kill."""
    assert not hasattr(Summed, "state_dict")


# What is refused


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["strategy=krum"], "and strategy=krum needs more; set strategy=apfl, "),
        (["strategy=kmeans"], "strategy=kmeans needs more"),
        (["strategy=scaffold"], "strategy=scaffold needs more"),
        (["attack=alie"], "with attack=alie, whose attackers know the updates that masks hide"),
        (["defence=clipping"], "with defence=clipping, which compares what masks hide"),
        (["compression=qsgd"], "with compression=qsgd, whose parts are no numbers that add up"),
        (["privacy=fixed_client", "privacy.strict=false"], "fixed_client, under which the server"),
        (["schedule=fedasync", "devices=equal"], "schedule=fedasync, whose replies began with"),
        (["num_clients=1"], "with 1 training client a round: the sum would be its update"),
        (["num_clients=1024"], r"secagg.bits=22 with 1024 training .* lower it to 21"),
    ],
)  # fmt: skip
def test_what_sums_do_not_tell_is_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        small("secure_aggregation=true", *words)


def test_its_settings_count_where_it_is_on() -> None:
    assert small("secure_aggregation=true").key != small().key
    assert small("secure_aggregation=true", "secagg.bits=20").key != small(ON[0]).key
    with pytest.raises(ConfigError, match=r"'secagg.bits=20' has no effect with secure_aggreg"):
        small("secagg.bits=20")
    for key in ("3_clients/sum_error", "3_clients/sum_smallest"):
        with pytest.raises(ConfigError, match="is never logged: every update is seen"):
            small(f"stop.metric={key}", "stop.target=1", "stop.mode=max")
