"""IFCA of fedsweep as the strategy; a client is asked for the initial model."""

import time

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

from fedsweep.strategies import build_strategy

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(nodes := sorted(grid.get_node_ids())) < 2:  # until both have joined
        time.sleep(0.1)
    [reply] = grid.send_and_receive([Message(RecordDict(), nodes[0], "query.init")])
    strategy = build_strategy("ifca", {"num_clusters": 2}, seed=0, num_clients=2)
    result = strategy.start(
        grid=grid,
        initial_arrays=reply.content["arrays"],
        num_rounds=context.run_config["num-server-rounds"],
        train_config=ConfigRecord({"lr": context.run_config["lr"]}),
    )
    np.savez("final_model.npz", *result.arrays.to_numpy_ndarrays())
