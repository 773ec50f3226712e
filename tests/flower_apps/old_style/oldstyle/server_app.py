"""A strategy of ``flwr.server`` that saves what it made."""

import numpy as np
from flwr.common import Context, parameters_to_ndarrays
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp


def mean(pairs):
    total = sum(n for n, _ in pairs)
    return {"half": sum(n * metrics["half"] for n, metrics in pairs) / total}


class Saves(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(server_round, results, failures)
        np.savez("final_model.npz", *parameters_to_ndarrays(parameters))
        return parameters, metrics


def server_fn(context: Context):
    strategy = Saves(
        evaluate_metrics_aggregation_fn=mean,
        on_fit_config_fn=lambda server_round: {"factor": server_round / 2},
        min_available_clients=4,
        min_fit_clients=4,
    )
    rounds = int(context.run_config["num-server-rounds"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))


app = ServerApp(server_fn=server_fn)
