"""Compressed updates: by hand, as properties of all kinds, in trials, and what is refused."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict

from fedsweep.client.compressing import compress, open_reply
from fedsweep.engine.flower import empty_run, identify
from fedsweep.errors import ConfigError
from fedsweep.links import MB
from fedsweep.scenario.compression import Compressor
from fedsweep.scenario.compressions import COMPRESSIONS, compression_of
from fedsweep.strategies.layout import Layout
from fedsweep.sweeps.compose import compose
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


# Trials


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
    ],
)
def test_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        compose(words)
    assert "\n" not in str(caught.value)
