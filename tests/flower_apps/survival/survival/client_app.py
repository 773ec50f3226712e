"""Hospitals that tell how many were at risk and how many died, month by month."""

import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def months(msg: Message, context: Context):
    draws = np.random.default_rng(int(context.node_config["partition-id"]))
    time, died = draws.integers(1, 10, 40), draws.random(40) < 0.6
    grid = range(1, int(msg.content["ask"]["until"]) + 1)
    reply = MetricRecord(
        {
            "at-risk": [int((time >= month).sum()) for month in grid],
            "deaths": [int(((time == month) & died).sum()) for month in grid],
            "patients": 40,
            "censored": int((~died).sum()),
        }
    )
    return Message(RecordDict({"counts": reply}), reply_to=msg)
