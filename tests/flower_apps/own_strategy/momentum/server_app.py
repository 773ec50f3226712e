"""No evaluation by clients at all."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp

from momentum.strategy import Momentum

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    strategy = Momentum(
        context.run_config["beta"], fraction_evaluate=0.0, min_available_nodes=4, min_train_nodes=4
    )
    result = strategy.start(
        grid, ArrayRecord([np.zeros(2)]), num_rounds=context.run_config["num-server-rounds"]
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
