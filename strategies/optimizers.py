"""Settings of optimizers on the server."""

from pydantic import Field

from fedsweep.strategies.settings import FedAvgSettings


def check_sgd(method: str, optimizer: str, why: str) -> None:
    """Refuse clients whose steps say nothing of their gradients.

    Raises
    ------
    ValueError
        They do not train by SGD.
    """
    if optimizer != "sgd":
        raise ValueError(
            f"strategy={method} with training.optimizer={optimizer}: {why}; "
            "set training.optimizer=sgd"
        )


class StepSettings(FedAvgSettings):
    """Of a method whose server steps towards the clients' mean."""

    server_learning_rate: float = Field(1.0, gt=0, le=1000, description="server's step size")


class AdaptiveSettings(FedAvgSettings):
    """Of a method whose server has a step size per parameter (Reddi et al. 2021)."""

    eta: float = Field(0.01, gt=0, le=1000, description="server's step size")
    tau: float = Field(
        1e-3,
        gt=0,
        le=1000,
        description="adaptivity: added to the root of the second moment",
    )


class MomentsSettings(AdaptiveSettings):
    """Of one that keeps two moments of the steps."""

    beta_1: float = Field(0.9, ge=0, lt=1, description="first moment's decay")
    beta_2: float = Field(0.99, ge=0, lt=1, description="second moment's decay")
