"""Text, Markov chains and series as tasks: what is read, what a network can and does reach."""

import zlib
from math import exp, log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from fedsweep.config import RunConfig
from fedsweep.data.federated import FederatedData
from fedsweep.data.sources import ImageData, load_images
from fedsweep.errors import ConfigError, DataError
from fedsweep.figures.examples import SHOWN
from fedsweep.models import build_model
from fedsweep.scenario.tasks.chains import Chains
from fedsweep.scenario.tasks.text import UNKNOWN, hashed_ngrams
from fedsweep.sweeps.compose import compose
from fedsweep.training.modules import forward_flop
from tests.trials import events_of, outcome

CHAINS = ["dataset=chains", "partition=natural", "num_clients=12"]
SMALL_LSTM = ["model=lstm", "model.kwargs={hidden:8,layers:1,embedding:4}"]


def data_of(config: RunConfig) -> ImageData:
    return load_images(config.dataset, config.data, config.natural_column)


# The next character


def test_windows_and_what_follows_them_by_hand(tmp_path: Path) -> None:
    """Of 20 characters the last 6 are to test on: windows of three, and the next one."""
    (tmp_path / "one.txt").write_text("abcabcabXY" * 2)
    words = ["dataset=text", f"dataset.path={tmp_path}", "dataset.length=3", "dataset.stride=1"]
    data = data_of(compose([*words, "dataset.test_fraction=0.3"]))
    assert data.class_names == (UNKNOWN, "X", "Y", "a", "b", "c")
    read = ["".join(data.names[symbol] for symbol in [*x, y])
            for x, y in zip(data.train_x, data.train_y, strict=True)]  # fmt: skip
    text = "abcabcabXYabca"  # 14 of 20 characters
    assert read == [text[i : i + 4] for i in range(11)]
    assert "".join(data.names[symbol] for symbol in data.test_x[0]) == "bca"
    rare = data_of(compose([*words, "dataset.symbols=3", "dataset.test_fraction=0.3"]))
    assert rare.class_names == (UNKNOWN, "a", "b")
    without = data_of(compose([*words[:3], "dataset.test_fraction=0.3"]))
    assert len(without.train_y) == 4  # from 0, 3, 6 and 9: a window's length on
    assert "windows overlap: what a client holds out it has seen in part" in data.told
    assert "overlap" not in without.told


def test_parts_are_files_or_what_a_pattern_begins(tmp_path: Path) -> None:
    for name in ("b", "a", ".hidden"):
        (tmp_path / f"{name}.txt").write_text(name * 40)
    words = ["dataset=text", f"dataset.path={tmp_path}", "dataset.length=5", "partition=natural",
             "num_clients=2", "partition.eval_fraction=0"]  # fmt: skip
    config = compose(words)
    split = FederatedData.build(data_of(config), config)
    names = split.images.names
    assert {names[symbol] for symbol in split.client(0, "train")[1]} == {"a"}
    assert {names[symbol] for symbol in split.client(1, "train")[1]} == {"b"}

    play = tmp_path / "play.txt"
    play.write_text("a prologue\n" + "ROMEO. but soft, what light\nJULIET. o romeo, romeo\n" * 9)
    config = compose([*words[:1], f"dataset.path={play}", 'dataset.part="([A-Z]+)\\."', *words[2:]])
    assert data_of(config).column.values == ("JULIET", "ROMEO")
    assert "p" not in data_of(config).names  # nobody speaks the prologue
    with pytest.raises(DataError, match="no line matches dataset.part="):
        data_of(compose([*words[:1], f"dataset.path={play}", 'dataset.part="(x+)"']))
    with pytest.raises(ConfigError, match="it has no group"):
        compose(["dataset=text", "dataset.part=ACT"])


def test_files_of_one_name_but_for_their_ends_are_two_parts(tmp_path: Path) -> None:
    """The second took the first one's place, without a word."""
    for name in ("a.txt", "a.md", "b.txt"):
        (tmp_path / name).write_text(name * 20)
    words = ["dataset=text", f"dataset.path={tmp_path}", "dataset.length=5"]
    assert data_of(compose(words)).column.values == ("a.md", "a.txt", "b")
    (tmp_path / "a.txt.old").write_text("who is a.txt?" * 9)
    with pytest.raises(DataError, match=r"two files are called a\.txt; rename one of them"):
        data_of(compose(words))


def test_what_is_tested_on_is_no_part_of_what_is_trained_on(tmp_path: Path) -> None:
    """The vocabulary and the windows of the training set end where the test set begins."""
    (tmp_path / "t.txt").write_text("ab" * 80 + "z" * 40)
    words = ["dataset=text", f"dataset.path={tmp_path / 't.txt'}", "dataset.length=9"]
    data = data_of(compose(words))
    assert data.names == (UNKNOWN, "a", "b")
    assert (data.test_x == 0).all()


@pytest.mark.parametrize(
    ("content", "more", "why"),
    [
        (b"short", [], "no part has the 81 characters"),
        (b"\xff\xfe\x00", [], "can't be read as UTF-8 text"),
        (b"text,label\na,b\n", ["dataset.predict=label"], "no .csv or .parquet file"),
    ],
)
def test_what_is_no_text_is_said(tmp_path: Path, content: bytes, more: list[str], why: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(DataError, match=why):
        data_of(compose(["dataset=text", f"dataset.path={tmp_path / 't.txt'}", *more]))


# Short texts


def _reviews(folder: Path) -> str:
    texts = ["a good film, good!", "a bad film", "so good", "bad, so bad"] * 6
    frame = {"text": texts, "label": ["+", "-", "+", "-"] * 6, "who": ["x", "y"] * 12}
    pd.DataFrame(frame).to_csv(path := folder / "reviews.csv", index=False)
    return str(path)


def test_short_texts_are_words_of_the_training_rows(tmp_path: Path) -> None:
    words = ["dataset=text", "dataset.predict=label", f"dataset.path={_reviews(tmp_path)}"]
    data = data_of(compose([*words, "dataset.length=4"]))
    assert data.names == ("", UNKNOWN, "!", ",", "a", "bad", "film", "good", "so")
    assert {"a good film ,", "so good", "a bad film", "bad , so bad"} == {
        " ".join(data.names[s] for s in x).strip() for x in data.train_x
    }
    assert data.class_names == ("+", "-")
    few = data_of(compose([*words, "dataset.symbols=4"]))
    assert len(few.names) == 4
    with pytest.raises(DataError, match="set partition.column to one of text, label, who"):
        data_of(compose([*words, "partition=natural"]))
    by_who = [*words, "partition=natural", "partition.column=who", "num_clients=2"]
    by = compose(by_who)
    assert data_of(by).column.values == ("x", "y")
    frame = pd.read_csv(tmp_path / "reviews.csv")
    frame.loc[::3, "who"] = None
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    with pytest.raises(DataError, match="column 'who' does not say whose "):
        data_of(compose(by_who))


@pytest.mark.parametrize(
    ("encode", "model"),
    [("words", ["model=bag"]), ("ngrams", ["model=logreg"])],
)
def test_short_texts_are_learnt(tmp_path: Path, encode: str, model: list[str]) -> None:
    words = ["dataset=text", "dataset.predict=label", f"dataset.path={_reviews(tmp_path)}",
             f"dataset.encode={encode}", "dataset.length=6", "dataset.buckets=64"]  # fmt: skip
    config = compose([*words, *model, "num_clients=2", "rounds=8", "training.lr=0.5"])
    result = events_of(config, images=data_of(config))[-1]
    assert result.summary["acc"] == 1
    assert "perplexity" not in result.summary


def test_n_grams_are_counted_by_a_hash_that_is_the_same_everywhere() -> None:
    """The 3-grams of 'ab' are ' ab' and 'ab ': CRC-32 says where they are counted."""
    found = hashed_ngrams("AB", 3, 16)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert (hashed_ngrams("a  b", 3, 16) == hashed_ngrams(" A b", 3, 16)).all()
    assert not (hashed_ngrams("ab", 3, 256) == hashed_ngrams("ba", 3, 256)).all()
    expected = {zlib.crc32(gram) % 16 for gram in (b" ab", b"ab ")}
    assert {*np.flatnonzero(found).tolist()} == expected


# Chains


def test_the_entropy_of_a_chain_is_that_of_the_formula() -> None:
    """Two symbols that stay with p and q: H = (1 - q) h(p) / (2 - p - q) + (1 - p) h(q) / ..."""
    chains = Chains(symbols=2)
    (p, _), (_, q) = chains.transitions(0)

    def h(x: float) -> float:
        return -x * log(x) - (1 - x) * log(1 - x)

    expected = ((1 - q) * h(p) + (1 - p) * h(q)) / (2 - p - q)
    assert chains.entropy(0) == pytest.approx(expected)


def test_texts_are_written_by_the_chains_of_their_groups() -> None:
    config = compose([*CHAINS, "dataset.examples=2000", "partition.eval_fraction=0"])
    split = FederatedData.build(data_of(config), config)
    chains = config.dataset
    assert isinstance(chains, Chains)
    assert split.groups.tolist() == [0, 1, 2] * 4
    x, y = split.client(4, "train")
    counts = np.zeros((12, 12))
    np.add.at(counts, (x[:, -1], y), 1)
    seen = counts.sum(1) > 100
    assert (counts / counts.sum(1, keepdims=True))[seen] == pytest.approx(
        chains.transitions(1)[seen], abs=0.1
    )


def test_clusters_reach_the_perplexity_that_is_known_and_one_model_does_not() -> None:
    """With their true groups clients come within 15 % of the best there is; together they can't."""
    words = [*CHAINS, "dataset.length=1", "dataset.examples=500", "rounds=12", "training.lr=2",
             "training.momentum=0", "evaluate_every=12", *SMALL_LSTM]  # fmt: skip
    found = {}
    for strategy in ("oracle", "fedavg"):
        config = compose([*words, f"strategy={strategy}"])
        found[strategy] = events_of(config, images=data_of(config))[-1].summary
    chains = config.dataset
    assert isinstance(chains, Chains)
    best = exp(np.mean([chains.entropy(group) for group in range(3)]))
    assert best * 0.95 < found["oracle"]["client_test_perplexity"] < best * 1.15
    assert found["fedavg"]["client_test_perplexity"] > best * 1.5
    assert found["oracle"]["ari"] == 1


@pytest.mark.parametrize("strategy", ["ifca", "ditto", "apfl", "pacfl", "fedclust"])
def test_methods_that_look_at_data_or_layers_take_symbols(strategy: str) -> None:
    more = ["strategy.num_clusters=2"] if strategy in ("ifca", "fedclust") else []
    config = compose([*CHAINS, "rounds=2", "dataset.examples=20", *SMALL_LSTM,
                      f"strategy={strategy}", *more])  # fmt: skip
    assert np.isfinite(events_of(config, images=data_of(config))[-1].summary["client_perplexity"])


def test_a_recurrent_network_is_the_same_in_any_process_and_twice() -> None:
    config = compose([*CHAINS, "rounds=2", "dataset.examples=20", *SMALL_LSTM])
    first, second = (outcome(events_of(config, images=data_of(config))) for _ in range(2))
    assert first == second


def test_models_for_other_examples_are_refused_by_what_they_read() -> None:
    for name, shape, symbols, why in (
        ("bag", (30,), 0, "model 'bag' reads symbols, and the data set has numbers"),
        ("lstm", (30,), 0, r"reads symbols \(T,\) or series"),
        ("mlp", (8,), 12, "model 'mlp' can't take symbols of shape 8"),
        ("lenet", (30,), 0, "model 'lenet' can't be built"),
    ):
        with pytest.raises(ValueError, match=why):
            build_model(name, shape, 3, symbols)


def test_leafs_network_has_the_parameters_of_its_layers() -> None:
    network = build_model("lstm", (80,), 80, 80)
    layers = [4 * 256 * (inputs + 256 + 2) for inputs in (8, 256)]
    assert sum(p.numel() for p in network.parameters()) == 80 * 8 + sum(layers) + 257 * 80


def test_the_flop_of_recurrent_layers_are_counted() -> None:
    """Five steps: two matrices (4 x 6) x 3 and (4 x 6) x 6 each, and the dense layer 6 x 2."""
    network = build_model("lstm", (5, 3), 2, hidden=6, layers=1)
    steps = 5 * 2 * (24 * 3 + 24 * 6)
    assert forward_flop(network, torch.zeros(1, 5, 3)) == steps + 2 * 6 * 2


# Series

HEADER = "@problemName t\n@timeStamps false\n@classLabel true a b\n@data\n"


def test_series_are_read_padded_and_scaled_by_hand(tmp_path: Path) -> None:
    """Two channels; the short series ends in missing values, which count as the mean."""
    train, test = tmp_path / "T_TRAIN.ts", tmp_path / "T_TEST.ts"
    train.write_text(HEADER + "1,2,3:4,5,6:b\n7:8:a\n1,?,3:1,1,1:a\n")
    test.write_text(HEADER + "1,2,3,9:1,1,1,9:a\n")
    words = ["dataset=series", f"dataset.path={train}", "partition.eval_fraction=0"]
    config = compose([*words, "num_clients=1"])
    data = data_of(config)
    assert data.class_names == ("a", "b")
    assert data.train_y.tolist() == [1, 0, 0]
    assert data.train_x.shape == (3, 3, 2)
    assert np.isnan(data.train_x[1, 1:]).all()
    assert np.isnan(data.train_x[2, 1, 0])
    assert data.test_x.shape == (1, 3, 2)
    assert "2 longer" not in data.told
    assert "1 longer ones are cut" in data.told
    split = FederatedData.build(data, config)
    values = [1, 2, 3, 7, 1, 3]
    assert split.scaling.mean[0] == pytest.approx(np.mean(values))
    assert split.scaling.std[0] == pytest.approx(np.std(values))
    x, _ = split.client(0, "train")
    assert (x == 0).sum() >= 5  # what is missing
    folder = data_of(compose(["dataset=series", f"dataset.path={tmp_path}"]))
    assert (folder.train_y == data.train_y).all()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("1,2:a\n", "no line @data"),
        (HEADER + "1,2:3:a\n", "line 5: channels of different lengths"),
        (HEADER + "1,x:a\n", "line 5: could not convert"),
        (HEADER, "has no series"),
        (HEADER + "1,2:a\n1,inf:b\n", "line 6: a value or a target is not finite in 32 bits"),
        (HEADER + "1,1e300:a\n", "line 5: a value or a target is not finite"),
        (HEADER.replace("class", "target"), "has no '@classlabel true'; set dataset.target=real"),
        (HEADER + "1:2:a\n1:b\n", "series of other than 2 channels"),
    ],
)
def test_what_is_no_series_is_said(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "t.ts").write_text(text)
    with pytest.raises(DataError, match=why):
        data_of(compose(["dataset=series", f"dataset.path={tmp_path / 't.ts'}"]))


def test_drawn_series_are_learnt_flat_and_recurrently() -> None:
    """A perceptron, batched, and an LSTM on series that are cut to 32 steps."""
    words = ["dataset=cylinder_bell_funnel", "num_clients=4", "dataset.max_train=400"]
    config = compose([*words, "rounds=8", "training.epochs=2"])
    assert events_of(config, images=data_of(config))[-1].summary["acc"] > 0.9
    config = compose([*words, "rounds=2", "dataset.length=32", *SMALL_LSTM])
    assert np.isfinite(events_of(config, images=data_of(config))[-1].summary["acc"])


def test_a_number_of_a_series_is_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 4)).round(3)
    lines = [f"{','.join(map(str, row))}:{row.sum():.3f}" for row in rows]
    path = tmp_path / "t.ts"
    path.write_text("@targetLabel true\n@data\n" + "\n".join(lines))
    config = compose(["dataset=series", f"dataset.path={path}", "dataset.target=real",
                      "model=logreg", "num_clients=2", "rounds=20"])  # fmt: skip
    assert events_of(config, images=data_of(config))[-1].summary["r2"] > 0.95


@pytest.mark.parametrize(
    "words", [CHAINS, ["dataset=cylinder_bell_funnel", "model=mlp"]], ids=["text", "series"]
)
def test_examples_are_drawn(words: list[str]) -> None:
    config = compose(words)
    summary = FederatedData.build(data_of(config), config).summary(config)
    draw: Any = SHOWN[summary.shows]
    for examples, targets in summary.examples.values():
        names = [summary.class_names[y] for y in targets]
        assert draw(examples, names, summary.names, "a title").axes
