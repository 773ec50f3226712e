"""A NumPyClient."""

import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context


class Adds(NumPyClient):
    def __init__(self, partition: int):
        self.partition = partition

    def get_parameters(self, config):
        return [np.zeros(3)]

    def fit(self, parameters, config):
        step = 2.0**self.partition * config.get("factor", 1.0)
        return [w + step for w in parameters], 4, {"step": step}

    def evaluate(self, parameters, config):
        return float(parameters[0].sum()), 4, {"half": float(parameters[0].sum()) / 2}


def client_fn(context: Context):
    return Adds(int(context.node_config["partition-id"])).to_client()


app = ClientApp(client_fn=client_fn)
