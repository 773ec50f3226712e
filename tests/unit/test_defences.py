"""Defences: by hand, against byzfl, in clusters, in trials, and which pairs there are."""

import re
from pathlib import Path
from typing import Any

import byzfl
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from fedsweep.config import RunConfig
from fedsweep.errors import ConfigError
from fedsweep.records import RoundRecord
from fedsweep.scenario.defences import DEFENCES, defence_of
from fedsweep.strategies import STRATEGIES, build_strategy, settings_of, with_defence, with_layout
from fedsweep.strategies.centered_clipping import CenteredClipping
from fedsweep.strategies.fltrust import trust
from fedsweep.strategies.layout import Layout
from fedsweep.strategies.majority import smaller_cluster
from fedsweep.strategies.rfa import geometric_median
from fedsweep.strategies.updates import moved, update_rows
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.checkpoint import CheckpointStore
from fedsweep.trial.trial import make_grid, run_trial
from tests.fakes import FakeGrid, halfway_app
from tests.trials import digits, events_of, outcome, small

ROOT = Path(__file__).resolve().parents[2]
METHODS = ["rfa", "centered_clipping", "majority", "fltrust"]
KINDS = sorted(name for name in DEFENCES if DEFENCES[name].defends)
ROWS = np.random.default_rng(0).standard_normal((9, 60)) + 0.5
ROWS[:2] *= -20


# Against byzfl, and what a definition says


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_the_geometric_median_is_byzfls_and_gets_better(steps: int) -> None:
    ours = geometric_median(ROWS, steps, 0.1)
    np.testing.assert_allclose(ours, byzfl.GeometricMedian(nu=0.1, T=steps)(ROWS), atol=1e-6)

    def far(z: np.ndarray) -> float:
        return float(np.linalg.norm(ROWS - z, axis=1).sum())

    assert far(geometric_median(ROWS, steps + 1, 1e-6)) <= far(geometric_median(ROWS, steps, 1e-6))


def test_the_geometric_median_of_numbers_is_their_median() -> None:
    assert geometric_median(np.array([[1.0], [2], [3], [9], [90]]), 200, 1e-9) == pytest.approx(3)


def test_centered_clipping_is_byzfls_over_rounds() -> None:
    ours = CenteredClipping(radius=2.0, steps=3)
    theirs = byzfl.CenteredClipping(L=3, tau=2.0)
    for scale in (1.0, 0.5, -1.0):  # the second and third begin where the one before ended
        np.testing.assert_allclose(ours.combine(ROWS * scale)[0], theirs(ROWS * scale), atol=1e-6)


@pytest.mark.parametrize("f", [1, 2, 4])
def test_mixing_is_byzfls(f: int) -> None:
    ours = defence_of("mixing", attackers=f).defend(ROWS)
    np.testing.assert_allclose(ours, byzfl.NNM(f=f)(ROWS), atol=1e-6)


def test_clipping_is_byzfls_and_by_the_median_by_hand() -> None:
    ours = defence_of("clipping", norm=3.0).defend(ROWS)
    np.testing.assert_allclose(ours, byzfl.Clipping(c=3.0)(ROWS.copy()), atol=1e-6)
    rows = np.array([[3.0, 4.0], [0, 2], [0, 0], [1, 0], [30, 40]])
    median = defence_of("clipping").defend(rows)  # lengths 5, 2, 0, 1, 50
    np.testing.assert_allclose(median, [[1.2, 1.6], [0, 2], [0, 0], [1, 0], [1.2, 1.6]])


def test_mixing_of_few_leaves_them_alone() -> None:
    rows = ROWS[:2]
    assert (defence_of("mixing", attackers=5).defend(rows) == rows).all()


def test_trust_by_hand() -> None:
    """The server's update is (2, 0): cosines 1, 0.6, -1, 0 of one without length."""
    rows = np.array([[5.0, 0], [3, 4], [-1, 0], [0, 0]])
    np.testing.assert_allclose(trust(rows, np.array([2.0, 0])), [1, 0.6, 0, 0])
    strategy = build("fltrust")
    strategy._trusted_P = np.array([2.0, 0])
    update, left_out = strategy.combine(rows)
    # (1 (2, 0) + .6 x 2 / 5 (3, 4)) / 1.6
    np.testing.assert_allclose(update, [(2 + 0.72) / 1.6, 0.96 / 1.6])
    assert left_out == [2, 3]
    nothing, everybody = strategy.combine(-rows[:1])
    assert (nothing.tolist(), everybody) == ([0, 0], [0])


def test_the_smaller_cluster_by_hand() -> None:
    right, up = np.array([1.0, 0.1]), np.array([-0.1, 1.0])
    rows = np.stack([right, 3 * right, up, right * 0.5, 2 * up])
    assert smaller_cluster(rows) == [2, 4]
    assert smaller_cluster(rows, gap=1.5) == []  # at right angles: 1 apart
    assert smaller_cluster(rows[[0, 2, 1, 4]]) == [1, 3]  # of equal ones the first one's counts
    assert smaller_cluster(rows[:2]) == []
    strategy = build("majority")
    np.testing.assert_allclose(strategy.combine(rows)[0], 1.5 * right)


def test_rows_and_back() -> None:
    start, after = record([1.0, 2.0], [[3.0]]), record([1.5, 0.0], [[4.0]])
    rows = update_rows([after], start, ["a", "b"])
    assert rows.tolist() == [[0.5, -2.0, 1.0]]
    back = moved(start, rows[0], ["a", "b"])
    assert {key: value.numpy().tolist() for key, value in back.items()} == {
        "a": [1.5, 0.0], "b": [[4.0]],
    }  # fmt: skip
    assert back["a"].dtype == "float32"


# Around a method


def record(a: list[float], b: list[list[float]], m: float | None = None) -> ArrayRecord:
    values = {"a": np.float32(a), "b": np.float32(b)}
    if m is not None:
        values["m"] = np.float32([m])
    return ArrayRecord({key: Array(value) for key, value in values.items()})


def build(name: str, **changes: Any) -> Any:
    params = settings_of(name=name, **changes).canonical()
    return build_strategy(name, params, seed=0, num_clients=20)


def replied(models: list[ArrayRecord | None], weights: list[int]) -> list[Message]:
    FakeGrid(halfway_app({}), 1)  # gives this process the identity that a message needs
    replies = []
    for node, (model, weight) in enumerate(zip(models, weights, strict=True), start=1):
        asked = Message(RecordDict(), node, "train")
        asked.metadata.__dict__["_message_id"] = str(node)
        if model is None:
            replies.append(Message(Error(1, "gone"), reply_to=asked))
            continue
        metrics = MetricRecord({"num-examples": weight})
        content = RecordDict({"arrays": model, "metrics": metrics})
        replies.append(Message(content, reply_to=asked))
    return replies


def test_a_defence_around_fedavg_by_hand() -> None:
    """Updates (0, 3) and (0, 1), clipped at 1, of weights 1 and 3; what is not trained, by these.

    An error, and what is not finite, is not its business: FedAvg has the latter.
    """
    start = record([1.0], [[1.0]], 0.0)
    clipping = defence_of("clipping", norm=1.0).defend
    strategy = with_layout(with_defence(build("fedavg"), clipping), Layout(("a", "b"), ("m",)))
    grid = FakeGrid(halfway_app({}), 3)
    list(strategy.configure_train(1, start, ConfigRecord(), grid))
    models = [record([1.0], [[4.0]], 4.0), None, record([1.0], [[2.0]], 8.0)]
    arrays, _ = strategy.aggregate_train(1, replied(models, [1, 1, 3]))
    assert {key: value.numpy().ravel().tolist() for key, value in arrays.items()} == {
        "a": [1.0], "b": [2.0], "m": [7.0],
    }  # fmt: skip
    assert models[0]["b"].numpy().item() == 4.0  # what came stays what it was


@pytest.mark.parametrize("name", METHODS)
def test_an_update_that_is_no_number_has_no_part_in_the_mean(name: str) -> None:
    strategy = with_layout(build(name), Layout(("a", "b"), ("m",)))
    strategy.sent = record([0.0], [[0.0]], 0.0)
    if name == "fltrust":
        strategy._trusted_P = np.array([1.0, 0.0])
    models = [record([1.0], [[0.0]], 1.0), record([float("nan")], [[0.0]], float("nan"))]
    arrays, _ = strategy.aggregate_train(1, replied(models, [1, 3]))
    assert arrays["a"].numpy().tolist() == [1.0]
    assert arrays["m"].numpy().tolist() == [1.0]
    assert strategy.accused == (frozenset({2}) if strategy.accuses else None)
    assert strategy.aggregate_train(1, replied(models[1:], [1])) == (None, None)


def test_in_clusters_a_defence_sees_one_at_a_time() -> None:
    """Two known groups of four, of which all train: never eight updates, nor from two models."""
    seen: list[int] = []

    def spy(updates_CP: np.ndarray) -> np.ndarray:
        seen.append(len(updates_CP))
        return updates_CP

    from unittest.mock import patch

    words = ["strategy=oracle", "shift=rotation", "shift.groups=2", "model=logreg"]
    with patch.object(DEFENCES["clipping"], "defend", lambda self, rows: spy(rows)):
        defended = events_of(small(*words, "defence=clipping"))
    assert seen == [4] * 6
    plain = events_of(small(*words))
    losses = [
        [record.metrics["3_clients/test_loss"] for record in events[2:-1]]
        for events in (defended, plain)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.parametrize("method", ["fedavg", "krum", "fedmedian", "kmeans", "ditto"])
@pytest.mark.parametrize("name", KINDS)
def test_a_defence_goes_with_methods_and_repeats(name: str, method: str) -> None:
    words = [f"strategy={method}", "model=logreg", "attack=sign_flip"]
    if method == "kmeans":
        words += ["strategy.num_clusters=2", "strategy.server.mode=simulated"]
    one, other = (outcome(events_of(small(*words, f"defence={name}"))) for _ in range(2))
    assert one == other
    assert one[0] != outcome(events_of(small(*words)))[0]


# In trials


@pytest.mark.parametrize("name", METHODS)
def test_a_robust_mean_holds_where_the_mean_does_not(name: str, tmp_path: Path) -> None:
    """A fourth sends five times the opposite; to the bit in other chunks and after a kill."""
    words = ["model=logreg", "attack=sign_flip", "attack.scale=5", "attack.fraction=0.25",
             "training.engine=sequential"]  # fmt: skip
    config = small(*words, f"strategy={name}")
    expected = outcome(events_of(config))
    assert expected[1][-1]["1_global/acc"] > 0.8
    assert outcome(events_of(small(*words)))[1][-1]["1_global/acc"] < 0.3
    chunks = small(*words, f"strategy={name}", "resources.chunk_size=1")
    assert outcome(events_of(chunks)) == expected

    def events() -> Any:
        store = CheckpointStore(str(tmp_path), config.key)  # as another process would open it
        return run_trial(config, digits(), make_split(digits(), config), checkpoints=store)

    for event in events():
        if isinstance(event, RoundRecord) and event.round == 2:
            break
    assert outcome(list(events())) == expected


def test_the_servers_examples_are_trained_on_alike_whoever_is_asked() -> None:
    config = small("model=logreg", "strategy=fltrust", "strategy.root_examples=30")
    images = digits()
    split = make_split(images, config)
    grid = make_grid(config, split.on(images), None, images, split)
    [reply] = grid.send_and_receive([Message(RecordDict(), 1, "query.init")])
    arrays = reply.content["arrays"]
    told = {"lr": 0.1, "epochs": 1, "batch-size": 10, "server-round": 1, "root": 30}
    answers = [
        grid.send_and_receive(
            [Message(RecordDict({"arrays": arrays, "config": ConfigRecord(told)}), n, "query.root")]
        )[0].content
        for n in (1, 5)
    ]
    one, other = ({k: v.numpy() for k, v in a["arrays"].items()} for a in answers)
    assert [a["metrics"]["num-examples"] for a in answers] == [30, 30]
    for key, value in one.items():
        assert (value == other[key]).all()
        assert (value != arrays[key].numpy()).any()
    x, y = split.on(images).root(30, config.seed)
    assert (len(x), len(y)) == (30, 30)
    assert len(split.on(images).root(10**6, 0)[1]) == len(images.train_y)


# Which pairs there are

COLUMNS = {
    "attack at the data": {"attack": {"name": "label_flip"}},
    "attack at replies": {"attack": {"name": "alie"}},
    "defence": {"defence": {"name": "clipping"}},
    "privacy": {"privacy": {"name": "fixed_server", "strict": False}},
    "compression": {"compression": {"name": "topk"}},
    "secure aggregation": {"secure_aggregation": True},
    "stale schedule": {"schedule": {"name": "fedbuff"}, "devices": {"name": "equal"}},
}


def runs(*settings: dict[str, Any], strategy: str = "fedavg") -> bool:
    """Return whether a trial is accepted; a refusal has to be one line that says what to set."""
    base: dict[str, Any] = {"strategy": {"name": strategy}, "num_clients": 20}
    if "server" in type(settings_of(strategy)).model_fields:
        base["strategy"] |= {"server": {"mode": "simulated"}}  # devices allow no measured load
    for more in settings:
        base |= more
    try:
        RunConfig.model_validate(base)
    except (ConfigError, ValueError) as error:
        why = str(error.errors()[0]["msg"]) if hasattr(error, "errors") else str(error)
        assert "\n" not in why, why
        assert "set " in why or "lower" in why, why
        return False
    return True


def table(rows: dict[str, list[str]], first: str) -> str:
    lines = [f"| {first} | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(row)} |" for name, row in rows.items())])


def told(*settings: dict[str, Any], strategy: str = "fedavg") -> str:
    return "runs" if runs(*settings, strategy=strategy) else "no"


def test_the_tables_of_pairs_in_the_docs_are_what_is_accepted() -> None:
    """Methods that are alike share a row. Where this fails, the docs get what it expected."""
    by_row: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(STRATEGIES):
        row = tuple(told(settings, strategy=name) for settings in COLUMNS.values())
        by_row.setdefault(row, []).append(f"`{name}`")
    methods = {", ".join(n): list(row) for row, n in sorted(by_row.items(), reverse=True)}
    pairs = {
        one: ["" if first.keys() & second.keys() else told(first, second)
              for second in COLUMNS.values()]
        for one, first in COLUMNS.items()
    }  # fmt: skip
    page = (ROOT / "docs" / "adversaries.md").read_text()
    for expected in (table(methods, "method"), table(pairs, "with FedAvg")):
        assert expected in page, f"docs/adversaries.md needs:\n{expected}"


def test_three_together_run_if_each_pair_does() -> None:
    names = list(COLUMNS)[:4]
    for strategy in sorted(STRATEGIES):
        for attack in names[:2]:
            for guard in names[2:]:
                pairs = [
                    runs(COLUMNS[attack], strategy=strategy),
                    runs(COLUMNS[guard], strategy=strategy),
                    runs(COLUMNS[attack], COLUMNS[guard]),
                ]
                together = runs(COLUMNS[attack], COLUMNS[guard], strategy=strategy)
                assert together == all(pairs), (strategy, attack, guard)


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["defence=hope"], "unknown defence 'hope'"),
        (["defence=mixing", "defence.attackers=5"], "needs more than 10 training clients a round"),
        (["defence=clipping", "defence.attackers=5"], "defence.attackers"),
        (["defence=clipping", "strategy=ifca"], "strategy=ifca is none; set defence=none"),
        (["defence=clipping", "strategy=scaffold", "training.lr=.01"], "strategy=scaffold is none"),
        (["defence=mixing", "privacy=fixed_client"], "with privacy=fixed_client: the noise is for"),
        (["defence=mixing", "schedule=fedbuff", "devices=equal"], "it compares updates of one"),
        (["strategy=rfa", "strategy.radius=1"], "strategy.radius"),
    ],
)
def test_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(match)) as caught:
        compose(words)
    assert "\n" not in str(caught.value)
