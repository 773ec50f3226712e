"""FedPer: the last layers are every client's own, and only those below them are averaged.

Arivazhagan, Aggarwal, Singh and Choudhary 2019, "Federated Learning with Personalization Layers"
(arXiv:1912.00818), algorithms 1 and 2. Deviations: docs/strategies/fedper.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from fedsweep.strategies.base import State, mean_of_replies, sort_replies
from fedsweep.strategies.clients import ClientPart, Update, Work, with_method
from fedsweep.strategies.layout import WithLayout, joined, last_layer_keys, part
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings, Setting


class FedPerSettings(FedAvgSettings):
    """FedAvg's, and what is each client's own."""

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
                "strategy=fedper with model=logreg: the head would be the whole model; "
                "take a model with more layers"
            )


class FedPer(WithLayout, FedAvg):
    """FedAvg of the base layers. Heads stay in the clients' state and never travel.

    The model that ``aggregate_train`` returns is the averaged base under the initial head:
    no client uses it.

    Parameters
    ----------
    head_layers : int
        K_P, modules at the end of the model that are personal.
    **fedavg
        Parameters of Flower's FedAvg.
    """

    settings = FedPerSettings
    sends_whole_model = False
    colour = "#6B3245"
    partial_means = True

    has_global_model = False  # an averaged base under the initial head is nobody's model
    personal_models = True

    def __init__(self, *, head_layers: int = 1, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.head_layers = head_layers
        self._arrays = ArrayRecord()  # of the round that was configured last, head included

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients the base."""
        self._arrays = arrays
        base, config = self._split(arrays, config)
        return super().configure_train(server_round, base, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the bases."""
        valid, _ = sort_replies(self, replies, read_arrays=True)
        if not valid:
            return None, None
        base = mean_of_replies(valid, self.weighted_by_key, self.laid_out(self._arrays))
        metrics = self.train_metrics_aggr_fn(
            [reply.content for reply in valid], self.weighted_by_key
        )
        return joined(self._arrays, self._arrays, base), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the sampled clients the base, which they evaluate under their own heads."""
        base, config = self._split(arrays, config)
        return super().configure_evaluate(server_round, base, config, grid)

    def state_dict(self) -> State:
        """Return nothing: the heads are the clients'."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Put back nothing."""

    def _split(self, arrays: ArrayRecord, config: ConfigRecord) -> tuple[ArrayRecord, ConfigRecord]:
        trained = head_keys(self.laid_out(arrays).trained, self.head_layers)
        layers = {name.rpartition(".")[0] for name in trained if "." in name}
        # A layer's running statistics go with its weights.
        head = [n for n in arrays if n in trained or ("." in n and n.rpartition(".")[0] in layers)]
        base = part(arrays, [key for key in arrays if key not in set(head)])
        return base, with_method(config, OwnHeads.method, head=head)


class OwnHeads(ClientPart):
    """A client keeps its head, and trains it together with the base that all share."""

    method = "fedper"

    def fit(self, work: Work) -> Update:
        """Train base and head together; keep the head, send the base (algorithms 1 and 2)."""
        trained, head = work.train(self.model(work)), list(work.config["head"])
        work.keep(self.method, trained.models.part(head))
        return Update(trained.results, trained.models.without(head))

    def model(self, work: Work) -> Models:
        """Return the base that was sent under the client's own head.

        The head is the initial model's until the client has trained.
        """
        return work.sent().completed(work.kept(self.method, otherwise=work.initial()))


def head_keys(keys: Sequence[str], num_layers: int) -> list[str]:
    """Return which of the trained arrays are the last layers', in the model's order.

    Raises
    ------
    ValueError
        Nothing would be left to average.
    """
    left = list(keys)
    for _ in range(num_layers):
        last = set(last_layer_keys(left))
        left = [key for key in left if key not in last]
        if not left:
            raise ValueError(
                f"strategy.head_layers={num_layers} is the whole model; lower it, "
                "or take a model with more layers"
            )
    return [key for key in keys if key not in left]
