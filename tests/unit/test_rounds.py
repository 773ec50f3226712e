"""The cost of a round depends on the cohort."""

from types import SimpleNamespace

from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp.strategy import FedAvg

from runner.rounds import _sampling_from_a_range

NODES = range(1, 10**12)
"""So many that a list of them can't be made."""


def test_flowers_sampling_never_lists_the_nodes():
    grid = SimpleNamespace(get_node_ids=lambda: NODES)
    strategy = FedAvg(fraction_train=1e-11, fraction_evaluate=2e-11, min_train_nodes=1, min_evaluate_nodes=1)
    record = ArrayRecord()
    with _sampling_from_a_range():
        train = list(strategy.configure_train(1, record, ConfigRecord(), grid))
        evaluate = list(strategy.configure_evaluate(1, record, ConfigRecord(), grid))
    assert (len(train), len(evaluate)) == (9, 19)
    assert all(message.metadata.dst_node_id in NODES for message in train + evaluate)


def test_flowers_module_is_left_as_it_was():
    from flwr.serverapp.strategy import fedavg, strategy_utils

    with _sampling_from_a_range():
        assert fedavg.sample_nodes is not strategy_utils.sample_nodes
    assert fedavg.sample_nodes is strategy_utils.sample_nodes
    assert "list" not in vars(fedavg)
