"""10,000 clients grouped by K-means on sketches, on Ray as in a trial: the server's costs."""

import sys
import time

import ray

from benchmarks.contender import say
from benchmarks.ours import hosts, images_of, memory
from fedsweep.engine.flower import quiet
from fedsweep.sweeps.compose import compose
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.metrics import agreement
from fedsweep.trial.trial import initial_model, make_grid, make_strategy, train_config


def cluster(clients: int, folder: str) -> None:
    """Group so many clients once; tell seconds, the server's own, its memory's rise, how well."""
    quiet()
    images = images_of(folder)
    config = compose(
        [
            "dataset=mnist", f"num_clients={clients}", "shift=rotation", "shift.replicate=true",
            "model=mlp", "partition.eval_fraction=0", "training=full_batch", "strategy=kmeans",
            "strategy.sketch=256",
        ]
    )  # fmt: skip
    split = make_split(images, config)
    data = split.on(images)
    with hosts() as actors:
        grid = make_grid(config, data, actors, ray.put(images), ray.put(split))
        arrays, layout = initial_model(grid)
        strategy = make_strategy(config, data.shift, layout)
        say(ready=True)
        idle, began = memory("VmRSS"), time.perf_counter()
        strategy.configure_train(1, arrays, train_config(config.training), grid)
        say(
            seconds=time.perf_counter() - began,
            server_s=strategy.clustering_s,
            mb=memory("VmHWM") - idle,
            ari=agreement(strategy.assignment, data.groups)["ari"],
            models_mb=clients * sum(a.numpy().nbytes for a in arrays.values()) / 2**20,
        )


if __name__ == "__main__":
    cluster(int(sys.argv[1]), sys.argv[2])
