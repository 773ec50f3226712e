"""FedAvg with momentum on the server, written for this app."""

import numpy as np
from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp.strategy import FedAvg


class Momentum(FedAvg):
    def __init__(self, beta: float, **rest):
        super().__init__(**rest)
        self.beta, self.velocity = beta, 0.0

    def configure_train(self, server_round, arrays, config, grid):
        self.before = arrays.to_numpy_ndarrays()
        config["half"] = server_round / 2
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(self, server_round, replies):
        replies = list(replies)
        arrays, _ = super().aggregate_train(server_round, replies)
        [new], [old] = arrays.to_numpy_ndarrays(), self.before
        self.velocity = self.beta * self.velocity + (new - old)
        spread = np.ptp([reply.content["metrics"]["loss"] for reply in replies])
        return ArrayRecord([old + self.velocity]), MetricRecord({"spread": float(spread)})
