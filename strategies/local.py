"""No federation: every client trains a model of its own, the baseline of all federated ones."""

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from fedsweep.strategies.base import State, metrics_of, sort_replies
from fedsweep.strategies.clients import ClientPart, Update, Work, with_method
from fedsweep.strategies.models import Models
from fedsweep.strategies.settings import FedAvgSettings


class Local(FedAvg):
    """Local training only. Models stay in the clients' state; what travels are metrics.

    A client gets the initial model until it has trained once, and no arrays afterwards.
    All parameters are FedAvg's.
    """

    settings = FedAvgSettings
    sends_whole_model = False
    colour = "#D55E00"

    has_global_model = False
    averages_models = False
    personal_models = True

    def __init__(self, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.trained: set[int] = set()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients train their own models."""
        return self._keep_local(
            super().configure_train(server_round, arrays, config, grid), arrays, config
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the metrics; there are no arrays to average."""
        valid, _ = sort_replies(self, replies, read_arrays=False)
        if not valid:
            return None, None
        self.trained.update(reply.metadata.src_node_id for reply in valid)
        return None, metrics_of(self, valid)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Have the sampled clients evaluate their own models."""
        return self._keep_local(
            super().configure_evaluate(server_round, arrays, config, grid), arrays, config
        )

    def state_dict(self) -> State:
        """Return which clients hold a model of their own."""
        return {"trained": sorted(self.trained)}

    def load_state_dict(self, state: State) -> None:
        """Put back what ``state_dict`` returned."""
        self.trained = set(state["trained"])

    def _keep_local(
        self, messages: Iterable[Message], arrays: ArrayRecord, config: ConfigRecord
    ) -> list[Message]:
        config = with_method(config, KeepLocal.method)
        first = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        later = RecordDict({self.arrayrecord_key: ArrayRecord(), self.configrecord_key: config})
        messages = list(messages)
        for message in messages:
            message.content = later if message.metadata.dst_node_id in self.trained else first
        return messages


class KeepLocal(ClientPart):
    """A client goes on with the model that it keeps, and sends none back."""

    method = "local"
    _name = "model"

    def fit(self, work: Work) -> Update:
        """Train the client's own model; it begins as the first one that was sent."""
        trained = work.train(self.model(work))
        work.keep(self._name, trained.models)
        return Update(trained.results, None)

    def model(self, work: Work) -> Models:
        """Return the client's own model; one that never trained has what it was sent."""
        return work.kept(self._name, otherwise=work.sent())
