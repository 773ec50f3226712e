"""What checks of a trial's configuration look at: its sections, by name."""

from typing import Protocol

from fedsweep.config.learning import TrainingConfig
from fedsweep.config.privacy import PrivacyConfig
from fedsweep.config.running import HalvingConfig, StopConfig
from fedsweep.pace.schedule import Schedule
from fedsweep.scenario.attack import Attack
from fedsweep.scenario.compression import Compression
from fedsweep.scenario.defence import Defence
from fedsweep.scenario.device import Devices
from fedsweep.scenario.partition import Partition
from fedsweep.scenario.shift import Shift
from fedsweep.strategies.settings import FedAvgSettings


class Sections(Protocol):
    """A trial's configuration, as far as others of this room may know it."""

    @property
    def rounds(self) -> int: ...  # noqa: D102
    @property
    def num_clients(self) -> int: ...  # noqa: D102
    @property
    def evaluate_every(self) -> int: ...  # noqa: D102
    @property
    def sampling(self) -> str: ...  # noqa: D102
    @property
    def strategy(self) -> FedAvgSettings: ...  # noqa: D102
    @property
    def partition(self) -> Partition: ...  # noqa: D102
    @property
    def shift(self) -> Shift: ...  # noqa: D102
    @property
    def attack(self) -> Attack: ...  # noqa: D102
    @property
    def defence(self) -> Defence: ...  # noqa: D102
    @property
    def compression(self) -> Compression: ...  # noqa: D102
    @property
    def devices(self) -> Devices: ...  # noqa: D102
    @property
    def schedule(self) -> Schedule: ...  # noqa: D102
    @property
    def privacy(self) -> PrivacyConfig: ...  # noqa: D102
    @property
    def training(self) -> TrainingConfig: ...  # noqa: D102
    @property
    def stop(self) -> StopConfig: ...  # noqa: D102
    @property
    def halving(self) -> HalvingConfig: ...  # noqa: D102
    def online(self, server_round: int) -> int: ...  # noqa: D102
