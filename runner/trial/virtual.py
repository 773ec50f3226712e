"""A trial in virtual time: its devices' clock, what its time was spent on, and its servers' share.

Nothing of it is there under ``devices=none``.
"""

from collections.abc import Mapping
from typing import cast

import numpy as np
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp.strategy import Strategy

from fedsweep.config import TrialConfig
from fedsweep.engine.grid import EngineGrid
from fedsweep.engine.wire import count_bytes
from fedsweep.errors import DataError, TrialError
from fedsweep.pace.clock import DeviceClock, TaskWork
from fedsweep.pace.ledger import Settled, TimeLedger
from fedsweep.pace.policies import Aggregation, Underway
from fedsweep.pace.schedule import Scene
from fedsweep.parts.code import place_of
from fedsweep.scenario.device import DeviceTable, TimedDevices
from fedsweep.scenario.presence import Always
from fedsweep.strategies.base import Clustered, State
from fedsweep.strategies.clients import LEAST
from fedsweep.strategies.devices import Device
from fedsweep.strategies.servers import ClusterServers

FLOP_QUERY = "query.flop"


class VirtualTime:
    """The virtual clock of a trial.

    Parameters
    ----------
    config : TrialConfig
        Whose devices are timed.
    grid : EngineGrid
        A client of it counts the network's FLOP.
    examples_N : (N,) int
        Training examples of each client.
    strategy : Strategy
        Its clusters' servers, where it has any, are known to have these devices.
    """

    def __init__(
        self, config: TrialConfig, grid: EngineGrid, examples_N: np.ndarray, strategy: Strategy
    ) -> None:
        devices = cast(TimedDevices, config.devices)
        self._strategy = strategy
        self._table = devices.table(config.num_clients, config.seed)
        _check_table(self._table, config)
        work = TaskWork(*network_cost(grid), examples_N)
        self.clock = DeviceClock(
            self._table, work, count_bytes, seed=config.seed, dropout=devices.dropout
        )
        self._ledger = TimeLedger(self.clock, stale=config.schedule.stale)
        election: ClusterServers | None = getattr(strategy, "election", None)
        if election is not None:
            election.device_of = ServersDevice(self._table)

    def scene(self, config: TrialConfig) -> Scene:
        """Return what the trial's schedule is played in."""
        return Scene(
            self._table.presence,
            self.clock,
            self._strategy,
            config.strategy.trained(config.online(1)),
        )

    def settle(self, number: int, due: Aggregation, underway: Underway) -> Settled:
        """Let the time pass that the clusters' servers take, and take in what a round was."""
        made_s = due.at + self._serving_s(due)
        underway.now = underway.since = made_s
        return self._ledger.settle(number, due, made_s)

    def _serving_s(self, due: Aggregation) -> float:
        """Return the virtual seconds until the slowest server has made its cluster's model."""
        strategy = self._strategy
        if not isinstance(strategy, Clustered) or not strategy.servers:
            return 0.0
        members_of: dict[int, list[int]] = {}
        members: Mapping[int, int] = getattr(strategy, "members", strategy.assignment)
        for flight in due.taken:
            cluster = members.get(flight.node)
            if cluster in strategy.servers:
                members_of.setdefault(cast(int, cluster), []).append(flight.node)
        times = []
        for cluster, nodes in members_of.items():
            model = strategy.cluster_arrays[cluster]
            nbytes = count_bytes(RecordDict({"model": model}))
            times.append(self.clock.serving_s(strategy.servers[cluster], nodes, nbytes))
        return max(times, default=0.0)

    def state_dict(self) -> State:
        """Return what a checkpoint keeps."""
        return {"clock": self.clock.state_dict(), "ledger": self._ledger.state_dict()}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.clock.load_state_dict(state["clock"])
        self._ledger.load_state_dict(state["ledger"])


def timeless_scene(config: TrialConfig) -> Scene:
    """Return what a schedule is played in where no time passes."""
    return Scene(Always(config.num_clients), cohort=config.strategy.trained(config.online(1)))


def network_cost(grid: EngineGrid) -> tuple[float, int]:
    """Ask a client for the FLOP of the network's forward pass on one example, and its least batch.

    Raises
    ------
    TrialError
        They can't be counted.
    """
    [reply] = grid.send_and_receive(
        [Message(RecordDict({"config": ConfigRecord()}), 1, FLOP_QUERY)]
    )
    if reply.has_error():
        raise TrialError(f"the network's FLOP can't be counted: {reply.error.reason}")
    grid.drain()
    told = reply.content.metric_records["metrics"]
    return float(cast(float, told["flop"])), int(cast(int, told[LEAST]))


def _check_table(table: DeviceTable, config: TrialConfig) -> None:
    """Refuse devices of somebody's own that are no devices."""
    if not isinstance(table, DeviceTable):
        raise DataError(
            f"{place_of(type(config.devices).table)} returns {type(table).__name__}; return a "
            "DeviceTable"
        )
    if len(table) != config.num_clients:
        raise DataError(
            f"devices={config.devices.name} gives {len(table)} devices for "
            f"num_clients={config.num_clients}"
        )
    for name in ("rate_N", "down_N", "up_N", "memory_N"):
        values_N = getattr(table, name)
        wrong = np.flatnonzero(~(np.isfinite(values_N) & (values_N > 0)))
        if len(wrong):
            raise DataError(
                f"devices={config.devices.name}: {name}[{wrong[0]}] is {values_N[wrong[0]]:g}; it "
                "has to be above 0, and finite"
            )


class ServersDevice:
    """The clients' devices as the election of clusters' servers sees them: relative to the median.

    Its measure of a link is the downlink, over which a server receives its members' updates.
    """

    def __init__(self, table: DeviceTable) -> None:
        columns = (table.rate_N, table.memory_N, table.down_N)
        self._relative_N3 = np.column_stack([values / np.median(values) for values in columns])

    def __call__(self, node: int) -> Device:
        """Return the device of a node."""
        return Device(*self._relative_N3[node - 1].tolist())
