"""FedAvg behind Flower's fixed clipping on the clients, with no noise to speak of."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    result = FedAvg(fraction_evaluate=0.0, min_available_nodes=4, min_train_nodes=4).start(
        grid,
        ArrayRecord([np.zeros(4)]),
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"clipping_norm": context.run_config["clip"]}),
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
