"""Plain FedAvg."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds = context.run_config["num-server-rounds"]
    result = FedAvg(min_available_nodes=4, min_train_nodes=4).start(
        grid, ArrayRecord([np.zeros(2)]), num_rounds=rounds
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
