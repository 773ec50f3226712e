"""Kaplan-Meier over all hospitals, from their counts."""

import time

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    while len(list(grid.get_node_ids())) < 3:  # until all hospitals have joined
        time.sleep(0.1)
    curves = []
    for until in range(2, context.run_config["horizon"] + 1, context.run_config["every"]):
        messages = [
            Message(RecordDict({"ask": ConfigRecord({"until": until})}), node, "query")
            for node in grid.get_node_ids()
        ]
        replies = [reply.content["counts"] for reply in grid.send_and_receive(messages)]
        at_risk, deaths = (
            np.sum([reply[name] for reply in replies], axis=0) for name in ("at-risk", "deaths")
        )
        curves.append(np.cumprod(1 - deaths / at_risk))
    np.savez("final_model.npz", *curves)
