"""Privacy around a strategy."""

from typing import Literal

from pydantic import Field

from fedsweep.config.section import Section, only
from fedsweep.strategies.ranges import METRIC, WEIGHT


class PrivacyConfig(Section):
    """Clipping and noise around the strategy: user-level differential privacy."""

    name: Literal["none", "fixed_server", "fixed_client", "adaptive_server", "adaptive_client"] = (
        Field("none", description="where updates are clipped, and whether the clipping norm adapts")
    )
    noise_multiplier: float = only(
        "fixed_server fixed_client adaptive_server adaptive_client",
        1.0,
        "noise deviation over clipping norm",
        ge=0,
        le=WEIGHT,
    )
    clipping_norm: float = only(
        "fixed_server fixed_client",
        1.0,
        "largest L2 norm of an update",
        gt=0,
        le=METRIC,
    )
    initial_clipping_norm: float = only(
        "adaptive_server adaptive_client", 0.1, "clipping norm of round 1", gt=0, le=METRIC
    )
    target_clipped_quantile: float = only(
        "adaptive_server adaptive_client", 0.5, "share left unclipped", gt=0, lt=1
    )
    clip_norm_lr: float = only(
        "adaptive_server adaptive_client", 0.2, "step size of the norm's adaptation", gt=0, le=1000
    )
