"""Methods in which a part of the model is every client's own, and the rest is averaged."""

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from pydantic import Field

from fedsweep.strategies.base import mean_of_replies, metrics_of, sort_replies
from fedsweep.strategies.clients import ClientPart, Update, Work
from fedsweep.strategies.layout import WithLayout, joined, of_last_layers, part
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings, Setting
from fedsweep.strategies.told import Told

OWN = "own"
"""Config key: the names of the arrays that are each client's own."""


class HeadSettings(FedAvgSettings):
    """FedAvg's, and how many layers are the head."""

    head_layers: int = Field(
        1,
        ge=1,
        le=10**4,
        description="modules at the end of the model that are each client's own",
    )

    def check_in(self, setting: Setting) -> None:
        """Refuse a model that is nothing but a head."""
        super().check_in(setting)
        if setting.model == "logreg":
            raise ValueError(
                f"strategy={self.name} with model=logreg: the head would be the whole model; "
                "take a model with more layers"
            )


class OwnPart(WithLayout, Told):
    """FedAvg of what the clients share. What is their own stays in their state and never travels.

    The model that ``aggregate_train`` returns is the averaged part under the initial own part.
    """

    sends_whole_model = False
    has_global_model = False  # a shared part under the initial own part is nobody's model
    personal_models = True

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self._whole = ArrayRecord()  # of the round that was configured last, own part included

    def own(self, arrays: ArrayRecord) -> list[str]:
        """Return which of the model's arrays are each client's own.

        Raises
        ------
        ValueError
            Nothing would be left to average, or nothing is anybody's own.
        """
        raise NotImplementedError

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients what all share."""
        self._whole = arrays
        return super().configure_train(server_round, *self._split(arrays, config), grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average what all share."""
        valid, _ = sort_replies(self, replies, read_arrays=True)
        if not valid:
            return None, None
        shared = mean_of_replies(valid, self.weighted_by_key, self.laid_out(self._whole))
        metrics = metrics_of(self, valid)
        return joined(self._whole, self._whole, shared), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients what all share, which they evaluate with what is their own."""
        return super().configure_evaluate(server_round, *self._split(arrays, config), grid)

    def _split(self, arrays: ArrayRecord, config: ConfigRecord) -> tuple[ArrayRecord, ConfigRecord]:
        own = self.own(arrays)
        left_out = set(own)
        shared = part(arrays, [name for name in arrays if name not in left_out])
        return shared, ConfigRecord({**config, OWN: own})


class OwnHead(OwnPart):
    """The last layers are every client's own.

    Parameters
    ----------
    head_layers : int
        Modules at the end of the model that are personal.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    def __init__(self, *, head_layers: int = 1, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.head_layers = head_layers

    def own(self, arrays: ArrayRecord) -> list[str]:
        """Return the arrays of the last layers, their running statistics included.

        Raises
        ------
        ValueError
            That is the whole model.
        """
        trained = head_keys(self.laid_out(arrays).trained, self.head_layers)
        layers = {name.rpartition(".")[0] for name in trained if "." in name}
        return [n for n in arrays if n in trained or ("." in n and n.rpartition(".")[0] in layers)]


class KeepPart(ClientPart):
    """A client keeps what is its own, and trains it together with what all share."""

    def fit(self, work: Work) -> Update:
        """Train the whole model; keep what is the client's own, send the rest."""
        trained, own = work.train(self.model(work)), list(work.config[OWN])
        work.keep(self.method, trained.models.part(own))
        return Update(trained.results, trained.models.without(own))

    def model(self, work: Work) -> Models:
        """Return what was sent with what is the client's own.

        That is the initial model's until the client has trained.
        """
        return work.sent().completed(work.kept(self.method, otherwise=work.initial()))


def head_keys(keys: Sequence[str], num_layers: int) -> list[str]:
    """Return which of the trained arrays are the last layers', in the model's order.

    Raises
    ------
    ValueError
        Nothing would be left to average.
    """
    head = of_last_layers(keys, num_layers)
    if len(head) == len(keys):
        raise ValueError(
            f"strategy.head_layers={num_layers} is the whole model; lower it, "
            "or take a model with more layers"
        )
    return head
