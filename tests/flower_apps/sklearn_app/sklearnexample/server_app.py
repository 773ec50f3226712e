"""FedAvg over the coefficients."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from sklearnexample.task import make_model, weights_of

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    start = ArrayRecord(weights_of(make_model(context.run_config["penalty-strength"])))
    result = FedAvg().start(
        grid=grid, initial_arrays=start, num_rounds=context.run_config["num-server-rounds"]
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
