"""Clipping, the plain mean over clients and its noise, against numbers worked out by hand."""

from math import exp, inf
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

from fedsweep.client.clipping import clipping_mod
from fedsweep.config import PrivacyConfig, TrialConfig
from fedsweep.errors import ConfigError
from fedsweep.seeding import seeded_globals
from fedsweep.strategies import STRATEGIES, build_strategy, settings_of, wrap_privacy
from fedsweep.strategies.base import Resumable
from fedsweep.strategies.insides import AggregationError
from fedsweep.strategies.privacy import AdaptiveNorm, clip
from fedsweep.strategies.state import load_strategy_state, strategy_state
from tests.fakes import FakeGrid, halfway_app, record, values

KINDS = [
    kind
    for kind in get_args(PrivacyConfig.model_fields["name"].annotation)
    if kind not in ("none", "local_sgd")
]
NAMES = sorted(STRATEGIES)
TARGETS = {1: (8, 0), 2: (4, 0), 3: (0, 8), 4: (0, 4)}  # from 0 the updates are 4, 2, 4, 2 long
SIZE = 40_000


def private(
    kind: str, name: str = "fedavg", strategy: Any = None, rate: float | None = None, **changes: Any
) -> Any:
    params = settings_of(name=name, **(strategy or {})).canonical()
    groups = dict.fromkeys(range(1, 9), 0)
    built = build_strategy(name, params, 0, 8, client_learning_rate=0.1, groups=groups)
    return wrap_privacy(built, PrivacyConfig(name=kind, **changes).canonical(), rate)


def clipping(app: ClientApp) -> ClientApp:
    """Return the clients behind the clipping mod, and the other messages as they are."""
    outer = ClientApp()
    outer.train(mods=[clipping_mod])(lambda message, context: app(message, context))
    outer.evaluate()(lambda message, context: app(message, context))
    return outer


def grid_of(kind: str, targets: Any = None, examples: Any = None, nodes: int = 4) -> FakeGrid:
    app = halfway_app(targets or TARGETS, examples)
    return FakeGrid(clipping(app) if kind.endswith("client") else app, nodes)


def one_round(
    strategy: Any, grid: FakeGrid, arrays: ArrayRecord | None = None, number: int = 1
) -> tuple[ArrayRecord, Any]:
    arrays = arrays or record(0, 0)
    messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
    with seeded_globals(number):
        new, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages))
    return arrays if new is None else new, metrics


def noise_of(strategy: Any, grid: FakeGrid) -> float:
    """Return the deviation of what a round adds where no client moves."""
    arrays, _ = one_round(strategy, grid, ArrayRecord({"w": Array(np.zeros(SIZE))}))
    return float(np.std(arrays["w"].numpy()))


def still_grid(kind: str, nodes: int, examples: Any = None) -> FakeGrid:
    return grid_of(kind, {node: np.zeros(SIZE) for node in range(1, 9)}, examples, nodes)


# Clipping


def model_of(*arrays: Any) -> ArrayRecord:
    return ArrayRecord({f"a{i}": Array(np.asarray(array)) for i, array in enumerate(arrays)})


def test_clip_by_hand() -> None:
    """3, 4 and 12 in arrays of different shapes, one of no dimension: one vector of length 13."""
    start = model_of(np.ones((1, 1), np.float32), np.array([1.0, 1.0]), np.float32(1))
    model = model_of(np.full((1, 1), 4, np.float32), np.array([5.0, 1.0]), np.float32(13))
    update, length = clip(start, model, 6.5)
    assert length == 13
    assert [value.tolist() for value in update.values()] == [[[1.5]], [2, 0], 6]
    assert all(value.dtype == np.float64 for value in update.values())
    update, length = clip(start, model, 13)
    assert [value.tolist() for value in update.values()] == [[[3]], [4, 0], 12]


def test_an_update_of_length_zero_stays_zero() -> None:
    start = model_of(np.ones(2), np.float32(5))
    update, length = clip(start, start, 1.0)
    assert length == 0
    assert [value.tolist() for value in update.values()] == [[0, 0], 0]


@pytest.mark.parametrize("first", [[np.nan, 1], [1, np.inf], [1, 1, 1]])
def test_what_can_not_be_clipped_is_an_update_of_zero(first: list[float]) -> None:
    update, length = clip(model_of(np.ones(2), 5.0), model_of(np.array(first), 9.0), 1.0)
    assert length == inf
    assert [value.tolist() for value in update.values()] == [[0, 0], 0]


def test_small_updates_of_large_models_are_clipped_exactly() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(0, 100, SIZE).astype(np.float32)
    model = start + rng.normal(0, 1e-2, SIZE).astype(np.float32)
    exact = model.astype(np.float64) - start
    update, length = clip(model_of(start), model_of(model), 0.5)
    assert length == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert np.linalg.norm(update["a0"]) == pytest.approx(0.5, rel=1e-12)


# The mean


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_is_over_clients_plainly(kind: str) -> None:
    """Updates of 4, 2, 4 and 2 clipped to 1; the examples 1, 30, 1, 1 do not count."""
    norm = "initial_clipping_norm" if kind.startswith("adaptive") else "clipping_norm"
    strategy = private(kind, noise_multiplier=0, **{norm: 1.0})
    arrays, metrics = one_round(strategy, grid_of(kind, examples={1: 1, 2: 30, 3: 1, 4: 1}))
    assert values(arrays) == pytest.approx([0.5, 0.5])
    assert metrics["train_loss"] == pytest.approx((64 + 30 * 16 + 64 + 16) / 33)


@pytest.mark.parametrize("kind", KINDS)
def test_no_client_moves_the_mean_by_more_than_the_noise_is_for(kind: str) -> None:
    """The largest client of four goes from no update to a huge one: S / 4. The noise: z S / 4."""
    norm = "initial_clipping_norm" if kind.startswith("adaptive") else "clipping_norm"
    settings, examples = {norm: 2.0}, {1: 1000, 2: 1, 3: 1, 4: 1}
    ends = []
    for first in ((0, 0), (10**6, 0)):
        strategy = private(kind, noise_multiplier=0, **settings)
        arrays, _ = one_round(strategy, grid_of(kind, TARGETS | {1: first}, examples))
        ends.append(np.array(values(arrays)))
    moved = float(np.linalg.norm(ends[1] - ends[0]))
    assert moved == pytest.approx(2 / 4)
    strategy = private(kind, noise_multiplier=0.3, **settings)
    deviation = noise_of(strategy, still_grid(kind, 4, examples))
    z = 0.3 if kind.startswith("fixed") else (0.3**-2 - (2 * 4 / 20) ** -2) ** -0.5
    assert deviation / moved == pytest.approx(z, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_fails_leaves_the_mean_and_the_others_are_learned_from(kind: str) -> None:
    norm = "initial_clipping_norm" if kind.startswith("adaptive") else "clipping_norm"
    strategy, grid = private(kind, noise_multiplier=0, **{norm: 1.0}), grid_of(kind)
    grid.fails = lambda message: message.metadata.dst_node_id == 1
    arrays, metrics = one_round(strategy, grid)
    assert values(arrays) == pytest.approx([1 / 3, 2 / 3])
    assert metrics["train_loss"] == pytest.approx((16 + 64 + 16) / 3)
    grid.fails = lambda _: True
    assert one_round(strategy, grid, arrays, 2) == (arrays, None)


@pytest.mark.parametrize("kind", ["fixed_server", "fixed_client"])
def test_the_noise_is_that_of_the_clients_that_replied(kind: str) -> None:
    """z S over eight, over seven as one fails, and over four before the newcomers join."""
    for nodes, failing, replied in ((8, 0, 8), (8, 3, 7), (4, 0, 4)):
        grid = still_grid(kind, nodes)
        grid.fails = lambda message, node=failing: message.metadata.dst_node_id == node
        deviation = noise_of(private(kind, noise_multiplier=1.5, clipping_norm=2.0), grid)
        assert deviation == pytest.approx(1.5 * 2 / replied, rel=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_under_a_rate_the_sum_is_divided_by_who_comes_on_average(kind: str) -> None:
    """Of 4 at 1 / 2 all come, or three, or nobody: the updates 4, 2, 4, 2, clipped to 1, over 2."""
    norm = "initial_clipping_norm" if kind.startswith("adaptive") else "clipping_norm"
    for failing, expected in (((), [1, 1]), ((1,), [0.5, 1]), ((1, 2, 3, 4), [0, 0])):
        grid = grid_of(kind)
        grid.fails = lambda message, nodes=failing: message.metadata.dst_node_id in nodes
        strategy = private(kind, rate=0.5, noise_multiplier=0, **{norm: 1.0})
        assert values(one_round(strategy, grid)[0]) == pytest.approx(expected)
        z = 0.15 if kind.startswith("fixed") else (0.15**-2 - (2 * 2 / 20) ** -2) ** -0.5
        noise = still_grid(kind, 4)
        noise.fails = grid.fails
        strategy = private(kind, rate=0.5, noise_multiplier=0.15, **{norm: 1.0})
        assert noise_of(strategy, noise) == pytest.approx(z / 2, rel=0.02)


def test_shapes_and_dtypes_stay_and_every_coordinate_is_noised() -> None:
    start = model_of(np.float32(1), np.ones((2, 3)), np.int64(7))
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        before = {key: array.numpy() for key, array in start.items()}
        moved = {key: np.asarray(value + value.dtype.type(1)) for key, value in before.items()}
        arrays = ArrayRecord({key: Array(value) for key, value in moved.items()})
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({"arrays": arrays, "m": metrics}), reply_to=message)

    strategy = private("fixed_server", clipping_norm=100.0, noise_multiplier=0.01)
    arrays, _ = one_round(strategy, FakeGrid(app, 2), start)
    kinds = {key: (a.dtype, tuple(a.shape)) for key, a in arrays.items()}
    assert (kinds["a0"], kinds["a1"]) == (("float32", ()), ("float64", (2, 3)))
    noised = np.append(arrays["a1"].numpy(), arrays["a0"].numpy())
    assert len(set(noised)) == 7
    assert noised == pytest.approx(2, abs=3)
    assert arrays["a2"].numpy() == 7  # nothing can be added to a counter: it stays as it was sent


def test_an_update_that_is_no_number_counts_as_zero() -> None:
    strategy = private("fixed_server", noise_multiplier=0, clipping_norm=1.0)
    arrays, _ = one_round(strategy, grid_of("fixed_server", TARGETS | {1: (np.nan, 0)}))
    assert values(arrays) == pytest.approx([1 / 4, 2 / 4])


def test_server_optimizers_step_along_the_noised_mean() -> None:
    """FedAvgM, momentum .5, updates clipped to 1: steps .5, then .5 + .25 in each direction."""
    momentum = {"server_momentum": 0.5}
    strategy = private("fixed_server", "fedavgm", momentum, noise_multiplier=0, clipping_norm=1)
    far = {1: (1e9, 0), 2: (1e9, 0), 3: (0, 1e9), 4: (0, 1e9)}
    grid = grid_of("fixed_server", far)
    arrays, _ = one_round(strategy, grid)
    assert values(arrays) == pytest.approx([0.5, 0.5])
    arrays, _ = one_round(strategy, grid, arrays, 2)
    assert values(arrays) == pytest.approx([1.25, 1.25])
    # The noise is on the mean, before the optimizer: FedAdam makes steps of about eta of it.
    adam = private("fixed_server", "fedadam", {"eta": 0.01}, noise_multiplier=100)
    arrays, _ = one_round(adam, still_grid("fixed_server", 4), record(*[0] * SIZE))
    assert np.abs(values(arrays)).max() < 0.02


# Adaptive clipping


@pytest.mark.parametrize("kind", ["adaptive_server", "adaptive_client"])
@pytest.mark.parametrize(("norm", "within"), [(1, 0), (2, 0.5), (3, 0.5), (4, 1), (9, 1)])
def test_the_norm_moves_towards_the_quantile(kind: str, norm: float, within: float) -> None:
    """Lengths 4, 2, 4, 2: S exp(-eta (b - gamma)), b the share that is no longer than S."""
    strategy = private(
        kind,
        noise_multiplier=0,
        initial_clipping_norm=norm,
        target_clipped_quantile=0.75,
        clip_norm_lr=0.3,
    )
    one_round(strategy, grid_of(kind))
    assert strategy.clipping_norm == pytest.approx(norm * exp(-0.3 * (within - 0.75)))


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.8])
def test_the_norm_ends_at_the_quantile_of_the_lengths(gamma: float) -> None:
    lengths = np.linspace(1, 10, 101)
    norm = AdaptiveNorm(0.0, 0.1, gamma, 0.05)
    for _ in range(2000):
        norm.adapt(int((lengths <= norm.clipping_norm).sum()), len(lengths), len(lengths))
    assert norm.clipping_norm == pytest.approx(np.quantile(lengths, gamma), rel=0.05)


@pytest.mark.parametrize("kind", ["adaptive_server", "adaptive_client"])
def test_the_noise_of_a_round_has_the_norm_of_that_round(kind: str) -> None:
    """Nobody moves: all are within S = 2, which falls by exp(-5 / 2) for the next round alone."""
    strategy = private(kind, noise_multiplier=0.3, initial_clipping_norm=2.0, clip_norm_lr=5.0)
    deviation = noise_of(strategy, still_grid(kind, 8))
    z = (0.3**-2 - (2 * 8 / 20) ** -2) ** -0.5
    assert deviation == pytest.approx(z * 2.0 / 8, rel=0.02)
    assert strategy.clipping_norm < 1.0
    before = strategy.clipping_norm
    assert noise_of(strategy, still_grid(kind, 8)) == pytest.approx(z * before / 8, rel=0.02)


def test_the_count_is_noised_with_its_own_deviation() -> None:
    """sigma_b = 20 / 20: b is the noised count over those that replied, 10 here."""
    found = []
    for seed in range(4000):
        norm = AdaptiveNorm(0.5, 1.0, 0.5, 1.0)
        with seeded_globals(seed):
            norm.adapt(4, 10, 20)
        found.append(-np.log(norm.clipping_norm) + 0.5)
    assert np.mean(found) == pytest.approx(0.4, abs=0.01)
    assert np.std(found) == pytest.approx(1.0 / 10, rel=0.05)
    norm = AdaptiveNorm(0.5, 1.0)
    assert norm.update_noise(20) == pytest.approx((0.5**-2 - (2 * 20 / 20) ** -2) ** -0.5)


@pytest.mark.parametrize("kind", ["adaptive_server", "adaptive_client"])
@pytest.mark.parametrize("last", [(4, 0), (0, 0.5)], ids=["clipped", "within"])
def test_a_client_more_moves_sum_and_count_by_no_more_than_z_covers(
    kind: str, last: tuple[float, float]
) -> None:
    """Of Poisson samples that differ by a client the sum and the count are within 1 / z.

    Both are seen under the same noise, over its deviations: z_Delta S and sigma_b. The count of
    those within S moves by a half (Andrew et al. 2021, theorem 1), and not by one.
    """
    z, m, seen = 0.15, 2.0, []
    for nodes in (3, 4):
        strategy = private(kind, rate=0.5, noise_multiplier=z, initial_clipping_norm=1.0)
        grid = grid_of(kind, {1: (8, 0), 2: (0.5, 0), 3: (0, 8), 4: last})
        grid.fails = lambda message, nodes=nodes: message.metadata.dst_node_id > nodes
        arrays, _ = one_round(strategy, grid)
        count = m * (0.5 - np.log(strategy.clipping_norm) / 0.2)
        seen.append((m * np.array(values(arrays)), count))
    (sum_of_3, count_of_3), (sum_of_4, count_of_4) = seen
    sigma_b = m / 20
    z_delta = (z**-2 - (2 * sigma_b) ** -2) ** -0.5
    moved = [*(sum_of_4 - sum_of_3) / z_delta, (count_of_4 - count_of_3) / sigma_b]
    assert abs(count_of_4 - count_of_3) == pytest.approx(0.5)
    assert np.linalg.norm(moved) <= 1 / z + 1e-9
    if last == (4, 0):
        assert np.linalg.norm(moved) == pytest.approx(1 / z)


def test_failing_clients_leave_the_noise_of_the_sum_as_it_is() -> None:
    """Eight are asked and five reply: sigma_b and z are those of eight, the mean is over five."""
    grid = still_grid("adaptive_server", 8)
    grid.fails = lambda message: message.metadata.dst_node_id > 5
    strategy = private("adaptive_server", noise_multiplier=0.6, initial_clipping_norm=1.0)
    z = (0.6**-2 - (2 * 8 / 20) ** -2) ** -0.5
    assert noise_of(strategy, grid) == pytest.approx(z / 5, rel=0.02)


@pytest.mark.parametrize("z", [0.4, 0.5])
def test_a_round_with_too_few_clients_for_its_noise_is_not_begun(z: float) -> None:
    strategy = private("adaptive_server", noise_multiplier=z)
    with pytest.raises(ValueError, match=rf"noise_multiplier={z} must be below 0\.4 .* 4 clients"):
        one_round(strategy, grid_of("adaptive_server"))


# Clients that clip


def test_clients_clip_before_they_reply() -> None:
    strategy = private("fixed_client", noise_multiplier=0, clipping_norm=1.0)
    grid = grid_of("fixed_client")
    _, metrics = one_round(strategy, grid)
    sent = [values(reply.content["arrays"]) for reply in grid.received[0][1:]]
    assert sent == [[1, 0], [0, 1], [0, 1]]
    assert "within-norm" in metrics


@pytest.mark.parametrize("kind", ["fixed_client", "adaptive_client"])
def test_clients_that_do_not_clip_are_noticed_or_held_to_the_norm(kind: str) -> None:
    app = halfway_app(TARGETS)
    honest = private(kind, noise_multiplier=0)
    with pytest.raises(AggregationError, match="client 1 replied without 'within-norm'"):
        one_round(honest, FakeGrid(app, 4))
    liars = ClientApp()

    @liars.train()
    def train(message: Message, context: Context) -> Message:
        reply = app(message, context)
        reply.content["metrics"]["within-norm"] = 1
        return reply

    arrays, _ = one_round(private(kind, noise_multiplier=0), FakeGrid(liars, 4))
    norm = 1.0 if kind == "fixed_client" else 0.1
    assert values(arrays) == pytest.approx([norm / 2, norm / 2])


def test_the_mod_needs_a_norm() -> None:
    grid = grid_of("fixed_client")
    messages = private("fixed_server").configure_train(1, record(0, 0), ConfigRecord(), grid)
    with pytest.raises(ValueError, match="needs 'clipping-norm' in the config"):
        grid.send_and_receive(messages)


# What wraps what


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_and_the_registry_refuse_the_same_strategies(name: str) -> None:
    config = {"strategy": {"name": name}, "privacy": {"name": "fixed_server", "strict": False}}
    if name in STRATEGIES.saying("private_mean"):
        TrialConfig.model_validate(config)
        private("fixed_server", name)
        return
    with pytest.raises(ConfigError, match=f"strategy={name} takes none; set strategy=fedadagrad, "):
        TrialConfig.model_validate(config)
    with pytest.raises(ValueError, match="needs a strategy that takes a mean over clients"):
        private("fixed_server", name)


def test_somebody_elses_strategy_is_not_known_to_take_a_mean() -> None:
    class Mine(flower.FedAvg):
        pass

    with pytest.raises(ValueError, match="Mine is not known to"):
        wrap_privacy(Mine(), PrivacyConfig(name="fixed_server").canonical())


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_on_from_its_state_to_the_bit(kind: str) -> None:
    def fresh() -> Any:
        return private(kind, "fedavgm", noise_multiplier=0.1)

    strategy, grid = fresh(), grid_of(kind)
    arrays = record(0, 0)
    for number in (1, 2):
        arrays, _ = one_round(strategy, grid, arrays, number)
    after = fresh()
    assert isinstance(after, Resumable)
    load_strategy_state(after, strategy_state(strategy))
    expected = one_round(strategy, grid_of(kind), arrays, 3)[0]
    assert one_round(after, grid_of(kind), arrays, 3)[0]["w"].data == expected["w"].data
    assert after.clipping_norm == strategy.clipping_norm


@pytest.mark.parametrize("kind", KINDS)
def test_it_runs_under_flowers_own_loop(kind: str) -> None:
    result = private(kind, noise_multiplier=0.1).start(grid_of(kind), record(0, 0), num_rounds=2)
    assert sorted(result.train_metrics_clientapp) == sorted(result.evaluate_metrics_clientapp)
    assert np.isfinite(values(result.arrays)).all()
