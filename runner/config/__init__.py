"""The configuration of a trial: every key, its meaning, its default and its range.

``configs/`` holds only what an option changes against these defaults. A field made by :func:`only`
applies to some options of its group; it is left out of the trial key, and refused when it is set
for another option. The settings of a method, a partition, a shift stand in its own file
(``strategies/``, ``runner/scenario/``), and those of another one are refused alike.
"""

from fedsweep.config.learning import (
    ModelConfig,
    TrainingConfig,
)
from fedsweep.config.privacy import PrivacyConfig
from fedsweep.config.running import (
    CheckpointConfig,
    DataConfig,
    HalvingConfig,
    HostGroup,
    ResourcesConfig,
    SessionConfig,
    StopConfig,
    TrackingConfig,
)
from fedsweep.config.section import Section, only
from fedsweep.config.trial import RunConfig, TrialConfig
from fedsweep.scenario.tasks.images import Images as DatasetConfig

__all__ = [
    "CheckpointConfig",
    "DataConfig",
    "DatasetConfig",
    "HalvingConfig",
    "HostGroup",
    "ModelConfig",
    "PrivacyConfig",
    "ResourcesConfig",
    "RunConfig",
    "Section",
    "SessionConfig",
    "StopConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TrialConfig",
    "only",
]
