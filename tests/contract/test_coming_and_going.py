"""Partial participation, newcomers, clients that leave, in each of our methods.

What holds is in docs/strategies/README.md.
"""

import random
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord

from fedsweep.errors import ConfigError
from fedsweep.strategies import STRATEGIES
from fedsweep.strategies.clustered import ClusterTraining
from fedsweep.strategies.local import Local
from fedsweep.sweeps.compose import compose
from tests.contract.test_strategies_flower import _build, _grid, _round, only_declared
from tests.fakes import halfway_app, start_of, values

TARGETS = {1: (8, 0), 2: (4, 0), 3: (0, 8), 4: (0, 4), 5: (0, 6)}
REFUSED = {"cfl"}
# Robust means of all clients there are, with nobody malicious: half of four are too few.
ROBUST = {
    "krum": {"num_malicious_nodes": 0},
    "multikrum": {"num_malicious_nodes": 0, "num_nodes_to_select": 1},
    "bulyan": {"num_malicious_nodes": 0},
    "fedtrimmedavg": {"beta": 0.34},
}
OURS = [name for name in STRATEGIES if not only_declared(name)]
README = Path(__file__).resolve().parents[2] / "docs" / "strategies" / "README.md"


def _strategy(name: str, fraction: float) -> Any:
    takes_k = name in (STRATEGIES.options_of("num_clusters") or ())
    changes = {"num_clusters": 2} if takes_k else ROBUST.get(name, {})
    return _build(name, fraction_train=fraction, **changes)


def _asked(strategy: Any, grid: Any, arrays: ArrayRecord) -> list[int]:
    messages = list(strategy.configure_evaluate(9, arrays, ConfigRecord(), grid))
    assert isinstance(strategy, Local) or all(message.content.array_records for message in messages)
    return [message.metadata.dst_node_id for message in messages]


@pytest.mark.parametrize("name", OURS)
def test_half_the_clients_then_a_newcomer_then_two_leave(name: str) -> None:
    """Rounds of two of four clients; a fifth joins; the last two leave.

    Every client there is asked, with a model.
    """
    random.seed(2)
    strategy = _strategy(name, 1.0 if name in REFUSED or name in ROBUST else 0.5)
    grid, arrays = _grid(), start_of(strategy)
    for number in range(1, 7):
        arrays, _ = _round(strategy, grid, number, arrays)
    assert sorted(_asked(strategy, grid, arrays)) == [1, 2, 3, 4]
    grid.app, grid.num_nodes = halfway_app(TARGETS), 5
    strategy.fraction_train = 1.0
    for number in (7, 8):
        arrays, _ = _round(strategy, grid, number, arrays)
    assert sorted(_asked(strategy, grid, arrays)) == [1, 2, 3, 4, 5]
    if hasattr(strategy, "assignment"):
        assert set(strategy.assignment) == {1, 2, 3, 4, 5}
    grid.num_nodes = 3
    arrays, _ = _round(strategy, grid, 9, arrays)
    assert sorted(_asked(strategy, grid, arrays)) == [1, 2, 3]
    if isinstance(strategy, ClusterTraining):
        assert set(strategy.assignment) == {1, 2, 3}
    assert all(abs(value) <= 10 for value in values(arrays))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_partial_participation_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(
        ConfigError,
        match=r"fraction_train=0.5 .*every member in every round; set .*fraction_train=1",
    ):
        compose([f"strategy={name}", "strategy.fraction_train=0.5"])


def test_the_page_names_every_method() -> None:
    _, table = README.read_text().split("\n## Who takes part")
    rows = [
        line.split("|")[1]
        for line in table.split("\n## ")[0].splitlines()
        if line.startswith("| `")
    ]
    assert {name.strip(" `") for row in rows for name in row.split(",")} == set(OURS)
