"""The Grid is Flower's: apps give the same on RayGrid, the inline grid and Flower's own engine."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import fixedclipping_mod
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedsweep.engine.flower import reference_of
from fedsweep.engine.grid import EngineGrid, inline_grid, ray_grid
from fedsweep.engine.host import AppSpec
from fedsweep.strategies import STRATEGIES
from fedsweep.trial.rounds import Loop, run_rounds
from tests.apps import add_app, model, server_app
from tests.fakes import record, values

NODES = 5


def spec(**kwargs: object) -> AppSpec:
    return AppSpec(f"add-{sorted(kwargs.items())}", add_app, dict(kwargs), NODES, {})


@pytest.fixture(params=["inline", "ray"])
def make(request: pytest.FixtureRequest):
    """Make a grid of the kind under test from an AppSpec."""
    if request.param == "inline":
        return inline_grid
    hosts = request.getfixturevalue("ray_hosts")
    return lambda app_spec: ray_grid(app_spec, hosts)


def train_message(node_id: int) -> Message:
    return Message(
        RecordDict({"arrays": model(), "config": ConfigRecord({"x": 1})}), node_id, "train"
    )


def test_replies_pair_and_keep_the_order_of_their_messages(make) -> None:
    grid = make(spec())
    messages = [train_message(node) for node in (4, 1, 3)]
    replies = grid.send_and_receive(messages)
    assert [reply.metadata.src_node_id for reply in replies] == [4, 1, 3]
    assert [r.metadata.reply_to_message_id for r in replies] == [
        m.metadata.message_id for m in messages
    ]
    assert len({m.metadata.message_id for m in [*messages, *replies]}) == 6
    assert [float(reply.content["arrays"]["w"].numpy()[0]) for reply in replies] == [4.0, 1.0, 3.0]


def test_push_and_pull(make) -> None:
    grid = make(spec())
    ids = list(grid.push_messages([train_message(1), train_message(2)]))
    got: list[Message] = []
    while len(got) < 2:
        got += grid.pull_messages(ids)
    assert {m.metadata.reply_to_message_id for m in got} == set(ids)
    assert grid.pull_messages(ids) == []


def test_state_follows_the_client(make) -> None:
    grid = make(spec())
    for expected in (1, 2, 3):
        [reply] = grid.send_and_receive([train_message(2)])
        assert reply.content["metrics"]["n"] == expected
    assert grid.states[2]["count"]["n"] == 3
    assert list(grid.states) == [2]


def test_a_client_that_raises_is_an_error_reply_with_its_traceback_kept(make) -> None:
    grid = make(spec(fail=(1,)))
    good, bad = grid.send_and_receive([train_message(1), train_message(2)])
    assert good.has_content()
    assert bad.error.reason == "ValueError: client 1 fails on purpose"
    [failed] = [task for task in grid.drain().tasks if task.error]
    assert "tests/apps.py" in failed.error


def test_a_client_that_fails_sometimes_is_there_again_in_the_next_round(make) -> None:
    grid = make(spec(fail_first=(1,)))
    trained = []
    for server_round in (1, 2):
        content = RecordDict(
            {"arrays": model(), "config": ConfigRecord({"server-round": server_round})}
        )
        replies = grid.send_and_receive([Message(content, node, "train") for node in (1, 2)])
        trained.append(
            [reply.content["metrics"]["n"] if reply.has_content() else None for reply in replies]
        )
    assert trained == [
        [1, None],
        [2, 1],
    ]  # its state is that from before the round in which it failed


def test_a_message_to_nobody_is_refused(make) -> None:
    with pytest.raises(ValueError, match="node ids are 1 to 5"):
        make(spec()).send_and_receive([train_message(6)])


def test_query_messages(make) -> None:
    [reply] = make(spec()).send_and_receive([Message(RecordDict(), 3, "query.echo")])
    assert reply.content["config"]["node"] == 3


def test_arrays_stay_references_until_they_are_read(ray_hosts) -> None:
    grid = ray_grid(spec(), ray_hosts)
    [reply] = grid.send_and_receive([train_message(1)])
    arrays = reply.content["arrays"]
    assert reference_of(arrays) is not None
    [again] = grid.send_and_receive([Message(RecordDict({"arrays": arrays}), 2, "train")])
    assert reference_of(arrays) is not None
    assert not grid._executor._read  # sent on, never fetched here
    assert again.content["arrays"]["w"].numpy().tolist() == [3.0] * 4


def test_partial_means_give_the_weighted_mean(make) -> None:
    """Clients 0 to 4 reply p + 1 at weight 10 (p + 1): (1 + 4 + 9 + 16 + 25) * 10 / 150 = 55/15."""
    grid = make(spec())
    grid.weight_key = "num-examples"
    grid._chunk_size = 2
    strategy = FedAvg()
    replies = grid.send_and_receive(strategy.configure_train(1, model(), ConfigRecord(), grid))
    assert len(replies) == 3
    arrays, metrics = strategy.aggregate_train(1, replies)
    assert np.allclose(arrays["w"].numpy(), 55 / 15, rtol=1e-6)
    assert metrics["train_loss"] == pytest.approx((0 * 1 + 1 * 2 + 2 * 3 + 3 * 4 + 4 * 5) / 15)
    assert sum(reply.content["metrics"]["num-examples"] for reply in replies) == 150


def results_of(start) -> tuple[list[float], dict]:
    result = start
    return result.arrays["w"].numpy().tolist(), {
        k: dict(v) for k, v in result.evaluate_metrics_clientapp.items()
    }


def test_start_gives_what_it_gives_on_flowers_engine(make) -> None:
    """Worked out by hand: each round adds 55 / 15; float32 leaves some last digits."""
    result = FedAvg().start(make(spec()), model(), num_rounds=2)
    assert np.allclose(result.arrays["w"].numpy(), 2 * 55 / 15, rtol=1e-6)
    assert result.evaluate_metrics_clientapp[2]["eval_loss"] == pytest.approx(
        4 * 2 * 55 / 15, rel=1e-6
    )
    assert result.train_metrics_clientapp[1]["n"] == pytest.approx(1)
    assert result.train_metrics_clientapp[2]["n"] == pytest.approx(2)


def test_the_round_loop_gives_what_start_gives(make) -> None:
    from fedsweep.seeding import seeded_globals

    with seeded_globals(0):
        expected = FedAvg(min_train_nodes=NODES).start(make(spec()), model(), num_rounds=3)
    loop = Loop(3, 0, ConfigRecord(), partial_means=False)
    for partial in (False, True):
        grid: EngineGrid = make(spec())
        loop = Loop(3, 0, ConfigRecord(), partial_means=partial)
        rounds = list(run_rounds(FedAvg(min_train_nodes=NODES), grid, model(), loop))
        assert [done.number for done in rounds] == [1, 2, 3]
        got = rounds[-1].arrays["w"].numpy()
        assert np.allclose(got, expected.arrays["w"].numpy(), rtol=1e-6)
        for done in rounds:
            assert done.train_metrics["train_loss"] == pytest.approx(
                expected.train_metrics_clientapp[done.number]["train_loss"]
            )
            assert done.evaluate_metrics["eval_loss"] == pytest.approx(
                expected.evaluate_metrics_clientapp[done.number]["eval_loss"], rel=1e-6
            )


def mod_app() -> ClientApp:
    """The app of the tests behind Flower's clipping mod."""
    inner = add_app()
    app = ClientApp(mods=[fixedclipping_mod])
    app.train()(lambda message, context: inner(message, context))
    return app


def test_flower_mods_run(make) -> None:
    grid = make(AppSpec("mod", mod_app, {}, NODES, {}))
    content = RecordDict({"arrays": model(), "config": ConfigRecord({"clipping_norm": 1.0})})
    [reply] = grid.send_and_receive([Message(content, 3, "train")])
    # The update is (3, 3, 3, 3) with norm 6, clipped to norm 1: half in each of four entries.
    assert np.allclose(reply.content["arrays"]["w"].numpy(), 0.5, rtol=1e-5)


class _Quick(NumPyClient):
    def fit(self, parameters, config):
        return [p + 1 for p in parameters], 7, {"loss": 0.5}


def numpy_client_app() -> ClientApp:
    return ClientApp(client_fn=lambda context: _Quick().to_client())


def test_numpy_client_runs(make) -> None:
    from flwr.common import Code, FitIns, ndarrays_to_parameters, parameters_to_ndarrays
    from flwr.compat.common.recorddict_compat import fitins_to_recorddict, recorddict_to_fitres

    grid = make(AppSpec("numpy", numpy_client_app, {}, NODES, {}))
    ins = FitIns(ndarrays_to_parameters([np.zeros(2)]), {})
    [reply] = grid.send_and_receive([Message(fitins_to_recorddict(ins, True), 1, "train")])
    result = recorddict_to_fitres(reply.content, keep_input=True)
    assert result.status.code == Code.OK
    assert parameters_to_ndarrays(result.parameters)[0].tolist() == [1.0, 1.0]
    assert result.num_examples == 7


def test_a_server_app_runs_unmodified(make) -> None:
    """The shape of Flower's quick start: a ServerApp whose main gets the grid."""
    app = ServerApp()
    seen: dict[str, object] = {}

    @app.main()
    def main(grid, context: Context) -> None:
        result = FedAvg(fraction_evaluate=1.0).start(
            grid=grid,
            initial_arrays=model(),
            train_config=ConfigRecord({"lr": 0.01}),
            num_rounds=2,
            evaluate_fn=lambda server_round, arrays: MetricRecord(
                {"w": float(arrays["w"].numpy()[0])}
            ),
        )
        seen["result"] = result

    context = Context(
        run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={"lr": 0.01}
    )
    app(make(spec()), context)
    assert seen["result"].evaluate_metrics_serverapp[2]["w"] == pytest.approx(2 * 55 / 15, rel=1e-6)


@pytest.mark.parametrize("name", ["oracle", "pacfl"])
def test_partial_means_do_not_mix_clusters_that_begin_with_one_model(name: str) -> None:
    """{1, 2} and {3, 4} know each other before round 1: (4 + 3 x 2) / 4 = 2.5, (4 + 2) / 2 = 3."""
    grid = inline_grid(AppSpec("servers", server_app, {}, 4, {}), chunk_size=4)
    groups = {"groups": {1: 0, 2: 0, 3: 1, 4: 1}} if name == "oracle" else {}
    strategy = STRATEGIES[name](num_clusters=2, **groups)
    list(run_rounds(strategy, grid, record(0, 0), Loop(1, 0, ConfigRecord())))
    assert {c: values(a) for c, a in strategy.cluster_arrays.items()} == {0: [2.5, 0], 1: [0, 3]}
