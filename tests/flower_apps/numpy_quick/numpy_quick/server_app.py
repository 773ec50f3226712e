"""The server of Flower's template, with a measure of its own."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def norm(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    [weights] = arrays.to_numpy_ndarrays()
    return MetricRecord({"norm": float(np.abs(weights).sum())})


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds = context.run_config["num-server-rounds"]
    strategy = FedAvg(fraction_train=1.0, min_available_nodes=4, min_train_nodes=4)
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord([np.zeros((2, 3))]),
        num_rounds=rounds,
        evaluate_fn=norm,
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
