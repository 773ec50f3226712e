"""The cost of a round depends on the cohort."""

from flwr.app import ArrayRecord, ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg, fedavg, strategy_utils

from runner.engine.grid import inline_grid
from runner.engine.host import AppSpec
from runner.rounds import _sampling_from_a_range

NODES = range(1, 10**12 + 1)
"""So many that a list of them can't be made."""


def test_flowers_sampling_never_lists_the_nodes():
    grid = inline_grid(AppSpec("key", ClientApp, {}, len(NODES), {}))
    strategy = FedAvg(fraction_train=1e-11, fraction_evaluate=2e-11, min_train_nodes=1, min_evaluate_nodes=1)
    record = ArrayRecord()
    with _sampling_from_a_range():
        train = list(strategy.configure_train(1, record, ConfigRecord(), grid))
        evaluate = list(strategy.configure_evaluate(1, record, ConfigRecord(), grid))
    assert (len(train), len(evaluate)) == (10, 20)
    assert all(message.metadata.dst_node_id in NODES for message in train + evaluate)


def test_flowers_module_is_left_as_it_was():
    with _sampling_from_a_range():
        assert fedavg.sample_nodes is not strategy_utils.sample_nodes
    assert fedavg.sample_nodes is strategy_utils.sample_nodes
    assert "list" not in vars(fedavg)
