"""Compressed updates: by hand, as properties of all kinds, in trials, and what is refused."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict

from fedsweep.client.compressing import compress, open_reply
from fedsweep.engine.flower import empty_run, identify
from fedsweep.errors import ConfigError, TrialError
from fedsweep.links import MB
from fedsweep.pace.downlink import DownLink, as_opened, difference
from fedsweep.pace.policies import Flight, Replying, WhenTaken
from fedsweep.scenario.compression import Compressor
from fedsweep.scenario.compressions import COMPRESSIONS, compression_of
from fedsweep.strategies.layout import Layout
from fedsweep.sweeps.compose import compose
from fedsweep.trial.opening import Opened
from tests.trials import events_of, outcome, small

KINDS = sorted(name for name in COMPRESSIONS if COMPRESSIONS[name].compresses)
UPDATE = np.array([3.0, -4.0, 0.5, -0.5, 0.0, 1.0], np.float32)


def sent(compressor: Compressor, update_P: np.ndarray, seed: int = 0) -> np.ndarray:
    parts = compressor.encode(update_P, seed)
    return compressor.decode(parts, len(update_P), seed)


# By hand


def test_top_k_by_hand() -> None:
    top = compression_of("topk", share=0.5)
    parts = top.encode(UPDATE, 0)
    assert parts["places"].tolist() == [0, 1, 5]
    assert parts["values"].tolist() == [3.0, -4.0, 1.0]
    assert top.decode(parts, 6, 0).tolist() == [3, -4, 0, 0, 0, 1]
    tied = compression_of("topk", share=0.6).encode(UPDATE, 0)  # 4 of 6: the first of two 0.5
    assert tied["places"].tolist() == [0, 1, 2, 5]


def test_signs_by_hand() -> None:
    """The mean size is 9 / 6; + - + - + + and two bits of nothing."""
    signs = compression_of("signsgd")
    parts = signs.encode(UPDATE, 0)
    assert (parts["signs"].tolist(), parts["size"].tolist()) == ([0b10101100], [1.5])
    assert signs.decode(parts, 6, 0).tolist() == [1.5, -1.5, 1.5, -1.5, 1.5, 1.5]


def test_qsgd_by_hand() -> None:
    """Of norm 5 in two levels: 3 is between 2.5 and 5, 4 as well; three bits a number."""
    quantised = compression_of("qsgd", levels=2, bucket=2)
    seen = {sent(quantised, UPDATE[:2], seed).round(4).tolist()[0] for seed in range(40)}
    assert seen == {2.5, 5.0}
    parts = quantised.encode(UPDATE, 0)
    assert len(parts["levels"]) == 3  # 18 bits
    np.testing.assert_allclose(parts["norms"], [5, 0.5**0.5, 1], rtol=1e-6)
    assert sent(quantised, UPDATE)[4] == 0


# Properties


@pytest.mark.parametrize(
    ("name", "settings"),
    [("qsgd", {"levels": 1}), ("qsgd", {"levels": 100, "bucket": 3}),
     ("randomk", {"share": 0.3, "feedback": False})],
)  # fmt: skip
def test_the_mean_of_what_is_sent_is_the_update(name: str, settings: dict[str, object]) -> None:
    update_P = np.random.default_rng(0).standard_normal(20).astype(np.float32)
    compressor = compression_of(name, **settings)
    drawn = np.stack([sent(compressor, update_P, seed) for seed in range(4000)])
    error = drawn.std(axis=0) / 4000**0.5
    assert (np.abs(drawn.mean(axis=0) - update_P) <= 4.5 * error + 1e-5).all()


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [1, 7, 513, 1200])
def test_what_is_sent_has_the_size_and_is_drawn_by_the_seed(name: str, size: int) -> None:
    compressor = compression_of(name)
    update_P = np.random.default_rng(1).standard_normal(size).astype(np.float32)
    one, two = sent(compressor, update_P, 5), sent(compressor, update_P, 5)
    assert one.shape == (size,)
    assert one.dtype == np.float32
    assert one.tolist() == two.tolist()
    assert np.isfinite(sent(compressor, np.zeros(size, np.float32))).all()
    if size == 1200:
        nbytes = sum(part.nbytes for part in compressor.encode(update_P, 5).values())
        assert nbytes < 4 * size / 5


@pytest.mark.parametrize("name", ["topk", "randomk", "signsgd"])
def test_error_feedback_sends_all_in_the_end(name: str) -> None:
    """The sum of what is sent and the last error is the sum of the updates."""
    compressor = compression_of(name, **({} if name == "signsgd" else {"share": 0.1}))
    rng = np.random.default_rng(2)
    error, told, meant = np.zeros(50, np.float32), np.zeros(50), np.zeros(50)
    for seed in range(60):
        update_P = (rng.standard_normal(50) + 1).astype(np.float32)
        whole = update_P + error
        part = sent(compressor, whole, seed)
        error, told, meant = whole - part, told + part, meant + update_P
    np.testing.assert_allclose(told + error, meant, rtol=1e-4, atol=1e-3)
    assert np.abs(error).mean() < np.abs(meant).mean() / 3


@pytest.mark.parametrize("name", KINDS)
def test_no_difference_leads_away_from_the_servers_model(name: str) -> None:
    """Whatever C is: QSGD and scaled random numbers alone would, with norms of thousands."""
    compressor = compression_of(name, **({"feedback": False} if name != "signsgd" else {}))
    left_P = np.random.default_rng(3).standard_normal(3000).astype(np.float32)
    lengths = [np.linalg.norm(left_P)]
    for seed in range(30):
        parts, told_P = difference(compressor, left_P, seed)
        assert parts["scale"].shape == (1,)
        left_P = left_P - told_P
        lengths.append(np.linalg.norm(left_P))
    assert (np.diff(lengths) <= 1e-3).all()
    assert lengths[-1] < 0.95 * lengths[0]
    assert not difference(compressor, np.zeros(7, np.float32), 0)[1].any()


# Models on their way to the clients

PAIR = Layout(("w",), averaged=("m",))
TOP = compression_of("topk", share=0.5, down=True)


def pair(*values: float, m: float = 0.0) -> ArrayRecord:
    identify(empty_run())
    arrays = {"w": np.array(values, np.float32), "m": np.array([m], np.float32)}
    return ArrayRecord({name: Array(value) for name, value in arrays.items()})


def to(model: ArrayRecord, *nodes: int) -> list[Message]:
    content = RecordDict({"arrays": model, "config": ConfigRecord({"lr": 0.1})})
    return [Message(content, node, "train") for node in nodes]


def seen(messages: Sequence[Message]) -> list[tuple[list[float], int]]:
    """Return what each client makes of what it is sent, and the bytes of that."""
    return [
        (m.content["opened"]["w"].numpy().tolist(), m.content["travels"]["arrays"])
        for m in messages
    ]


def numbers(content: RecordDict) -> int:
    """Return the bytes of numbers alone."""
    return sum(a.numpy().nbytes for r in content.array_records.values() for a in r.values())


def test_a_model_comes_as_differences_and_whole_to_whoever_lacks_more() -> None:
    """Of four numbers two are sent, in 20 bytes with their places and s; m has 4, a model 20.

    ====  ==============  =============  ==============================
    time  server          clients        asked: bytes
    ====  ==============  =============  ==============================
    0     0, 0, 0, 0      the same       1, 2: whole
    1     4, 3, 2, 1      4, 3, 0, 0     1: whole, as 20 + 4 is more; 3: whole
    ====  ==============  =============  ==============================
    """
    down = DownLink(TOP, PAIR, numbers, seed=0)
    first = down.asked(to(pair(0, 0, 0, 0), 1, 2), 0)
    assert seen(first) == [([0, 0, 0, 0], 20)] * 2
    assert first[0].content is first[1].content
    down.took(1)
    second = down.asked(to(pair(4, 3, 2, 1, m=7), 1, 3), 1)
    assert seen(second) == [([4, 3, 0, 0], 20)] * 2
    assert second[0].content["opened"]["m"].numpy().tolist() == [7]
    assert second[0].content["arrays"]["w"].numpy().tolist() == [4, 3, 2, 1]
    assert as_opened(second)[0].content["arrays"]["w"].numpy().tolist() == [4, 3, 0, 0]


def test_a_client_that_missed_models_is_sent_all_differences_since() -> None:
    """A difference of 40 numbers is one number, its place and s: 12 bytes; m has 4."""
    down = DownLink(compression_of("topk", share=0.01, down=True), PAIR, numbers, seed=0)
    models = [np.eye(40, dtype=np.float32)[:k].sum(axis=0) * k for k in range(4)]
    told: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for version, (model, nodes) in enumerate(
        zip(models, [(1, 2, 3), (1,), (1, 3), (1, 2, 3)], strict=True)
    ):
        for message in down.asked(to(pair(*model), *nodes), version):
            node = message.metadata.dst_node_id
            told[node].append(message.content["travels"]["arrays"])
            if node != 3:
                down.took(node)
        kept = down.state_dict()
        down = DownLink(compression_of("topk", share=0.01, down=True), PAIR, numbers, seed=0)
        down.load_state_dict(kept)
    assert told == {1: [164, 16, 16, 16], 2: [164, 40], 3: [164, 164, 164]}  # 3 never replied


def test_clients_are_all_sent_one_model() -> None:
    down = DownLink(TOP, PAIR, numbers, seed=0)
    down.asked([*to(pair(1, 2), 1), *to(pair(1, 2), 2)], 0)
    with pytest.raises(TrialError, match="compression.down=true needs clients that are all sent"):
        down.asked([*to(pair(1, 2), 1), *to(pair(1, 3), 2)], 1)


@dataclass
class Moves(Replying):
    """Its clients move the model that they were sent by (1, 0, 0, 0)."""

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        replies = []
        for message in messages:
            moved = message.content["arrays"]["w"].numpy() + np.float32([1, 0, 0, 0])
            reply = Message(RecordDict({"arrays": pair(*moved, m=9)}), reply_to=message)
            compress(TOP, PAIR, [message], [Context(1, 1, {}, RecordDict(), {})], [reply], [0])
            replies.append(reply)
        return replies


def test_what_clients_moved_is_a_step_from_the_servers_own_model() -> None:
    """They have (4, 3, 0, 0) of (4, 3, 2, 1): what they lack is no step of theirs."""
    down = DownLink(TOP, PAIR, numbers, seed=0)
    down.asked(to(pair(0, 0, 0, 0), 1), 0)
    [message] = down.asked(to(pair(4, 3, 2, 1), 1), 1)
    delivery = Opened(WhenTaken(), TOP, PAIR, down)
    flight = Flight(0, 1, 1, 0.0, 0.0, message)
    [reply] = delivery.replies(Moves(), [flight], 2, None, pair(4, 3, 2, 1))
    assert reply.content["arrays"]["w"].numpy().tolist() == [5, 3, 2, 1]
    assert reply.content["arrays"]["m"].numpy().tolist() == [9]
    assert message.content["arrays"]["w"].numpy().tolist() == [4, 3, 2, 1]


# Trials


def test_models_that_are_sent_compressed_take_fewer_bytes_and_seconds() -> None:
    words = ["model=logreg", "devices=equal", "strategy.fraction_evaluate=0", "compression=topk"]
    words += ["compression.share=0.1", "resources.chunk_size=1", "rounds=4"]
    plain, down = (events_of(small(*words, *more)) for more in ([], ["compression.down=true"]))
    mb = [[r.metrics["4_comm/mb_down"] * MB / 8 for r in run[2:-1]] for run in (plain, down)]
    whole, some = 650 * 4 + 2 * 128, 65 * 8 + 4 + 3 * 128  # round 1 sends all of it
    assert mb == [[whole] * 4, [whole] + [some] * 3]
    times = [[r.metrics["5_time/virtual_round_s"] for r in run[2:-1]] for run in (plain, down)]
    saved = np.subtract(*times)
    assert saved == pytest.approx([0] + [(whole - some) / (20e6 / 8)] * 3, abs=1e-9)
    losses = [[r.metrics["1_global/loss"] for r in run[2:-1]] for run in (plain, down)]
    assert losses[0][0] == losses[1][0]
    assert losses[0][1] != losses[1][1]
    assert losses[1][-1] < losses[1][0]


@pytest.mark.parametrize("schedule", [["sync"], ["fedbuff", "schedule.buffer=3"], ["fedasync"]])
def test_models_of_which_all_is_sent_are_those_of_before(schedule: list[str]) -> None:
    name, *more = schedule
    words = ["devices=lognormal", f"schedule={name}", *more, "compression=topk"]
    words += ["compression.share=1", "model=logreg"]
    plain, down = (events_of(small(*words, *more)) for more in ([], ["compression.down=true"]))
    losses = [[r.metrics["1_global/loss"] for r in run[1:-1]] for run in (plain, down)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_keys_of_trials_without_it_stay() -> None:
    plain, off, on = (
        compose(["compression=topk", *more])
        for more in ([], ["compression.down=false"], ["compression.down=true"])
    )
    assert "down" not in plain.canonical()["compression"]
    assert plain.key == off.key != on.key


def test_sending_all_of_it_is_sending_it_whole_and_less_is_fewer_bytes_and_seconds() -> None:
    """To rounding: a model is where it began plus what it moved."""
    words = ["model=logreg", "devices=equal", "resources.chunk_size=1"]
    runs = {
        name: events_of(small(*words, *more))
        for name, more in {
            "whole": [],
            "all": ["compression=topk", "compression.share=1"],
            "some": ["compression=topk", "compression.share=0.1"],
        }.items()
    }
    losses = {n: [r.metrics["1_global/loss"] for r in run[1:-1]] for n, run in runs.items()}
    assert losses["all"] == pytest.approx(losses["whole"], rel=1e-5)
    assert losses["some"] != pytest.approx(losses["whole"], rel=1e-3)
    assert losses["some"][-1] < losses["some"][0]

    # 650 numbers in two arrays; of 65 of them 4 bytes for the place and 4 for the value.
    up = {n: run[-2].metrics["4_comm/mb_up"] * MB / 8 for n, run in runs.items()}
    assert up["whole"] == pytest.approx(650 * 4 + 2 * 128)
    assert up["some"] == pytest.approx(65 * 8 + 2 * 128)
    saved = (up["whole"] - up["some"]) / (5e6 / 8)
    took = {n: run[-2].metrics["5_time/virtual_round_s"] for n, run in runs.items()}
    assert took["whole"] - took["some"] == pytest.approx(saved)


RUNS = {
    "clusters": ["compression=qsgd", "strategy=kmeans", "strategy.num_clusters=2",
                 "strategy.server.mode=simulated", "shift=rotation", "shift.groups=2"],
    "stale": ["compression=topk", "devices=lognormal", "schedule=fedbuff", "schedule.buffer=3"],
    "a model of the client's own": ["compression=randomk", "strategy=ditto"],
    "both ways": ["compression=qsgd", "compression.down=true", "strategy=scaffold",
                  "training.momentum=0"],
}  # fmt: skip


def test_what_of_a_model_is_not_trained_travels_as_it_is() -> None:
    """The trained vector moves by (1, -3, 0); of it 2 numbers are sent, then what was lost."""
    identify(empty_run())
    layout = Layout(("a", "b"), averaged=("m",), carried=("n",))

    def record(a: list[float], b: float, m: float, n: int) -> ArrayRecord:
        values = {"a": np.array(a, np.float32), "m": np.array(m, np.float32), "n": np.array(n)}
        return ArrayRecord({k: Array(v) for k, v in {**values, "b": np.float32([[b]])}.items()})

    top, context = compression_of("topk", share=0.5), Context(1, 1, {}, RecordDict(), {})
    start = record([1, 1], 5.0, 0.0, 0)
    for moved, opened in ((record([2, -2], 5.5, 7.0, 3), [2, -2]), (start, [1, 1])):
        message = Message(RecordDict({"arrays": start}), 1, "train")
        reply = Message(RecordDict({"arrays": moved}), reply_to=message)
        compress(top, layout, [message], [context], [reply], [9])
        assert set(reply.content["arrays"]) == {"places", "values"}
        open_reply(top, layout, start, reply)
        assert list(reply.content) == ["arrays"]
        arrays = reply.content["arrays"]
        assert arrays["a"].numpy().tolist() == opened
        assert arrays["n"].numpy() == moved["n"].numpy()
        assert arrays["m"].numpy() == moved["m"].numpy()
    assert arrays["b"].numpy().tolist() == [[5.5]]  # what was lost of the first update


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("moved", [[np.nan] * 4, [np.nan, 1, 2, 3], [1, np.inf, 2, 3]], ids=str)
def test_an_update_that_is_not_finite_is_seen(name: str, moved: list[float]) -> None:
    """QSGD made zeros of it; top-k sent its finite numbers, and kept the others for ever."""
    identify(empty_run())
    layout, context = Layout(("a",)), Context(1, 1, {}, RecordDict(), {})
    start, trained = (
        ArrayRecord({"a": Array(np.array(values, np.float32))}) for values in ([0] * 4, moved)
    )
    message = Message(RecordDict({"arrays": start}), 1, "train")
    reply = Message(RecordDict({"arrays": trained}), reply_to=message)
    compressor = compression_of(name)
    compress(compressor, layout, [message], [context], [reply], [0])
    assert not context.state.array_records
    open_reply(compressor, layout, start, reply)
    assert reply.content["arrays"]["a"].numpy().tolist() == pytest.approx(moved, nan_ok=True)


@pytest.mark.parametrize("name", RUNS)
def test_it_runs_with_what_it_goes_with_and_repeats_to_the_bit(name: str) -> None:
    one, other = (outcome(events_of(small(*RUNS[name]))) for _ in range(2))
    assert one == other
    assert np.isfinite(one[1][-1]["3_clients/acc"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["compression=zip"], "unknown compression 'zip'"),
        (["compression=topk", "strategy=ifca"], "compression=topk needs clients that are sent one"),
        (
            ["compression=topk", "strategy=fedper"],
            "those of strategy=fedper don't; set compression",
        ),
        (["compression=qsgd", "privacy=fixed_client"], "with privacy=fixed_client, which clips"),
        (["compression=qsgd", "compression.share=0.1"], "compression.share"),
        (["compression=topk", "compression.share=0"], "compression.share"),
        (["compression.down=true"], "compression.down"),
        (
            ["compression=topk", "compression.down=true", "strategy=kmeans"],
            "compression.down=true needs clients that are all sent one averaged model, and "
            "strategy=kmeans has one per cluster; set compression.down=false",
        ),
    ],
)
def test_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        compose(words)
    assert "\n" not in str(caught.value)
