"""pfl-research: its FederatedAveraging and SimulatedBackend under ``torchrun``; runs in ``.venv-bench``."""

import sys
import time

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.internal.ops import get_ops
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

from benchmarks.contender import say
from benchmarks.work import WORKS, load, make_model, score

ENDLESS = 10**6


class Turns(TrainingProcessCallback):
    """Rank 0 waits for its turn and answers; the other ranks wait for rank 0 in a collective operation."""

    def __init__(self, score) -> None:
        self._score = score
        self._first = True
        self._started = 0.0

    def _wait(self) -> bool:
        distributed = get_ops().distributed
        go = torch.zeros(1)
        if distributed.global_rank == 0:
            go += float(bool(sys.stdin.readline()))
        go = distributed.all_reduce([go])[0]
        self._started = time.perf_counter()
        return bool(go.item() == 0)

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Answer the turn that ended, and wait for the next."""
        if get_ops().distributed.global_rank == 0:
            if self._first:
                say(ready=True)
            else:
                taken = time.perf_counter() - self._started
                say(seconds=taken, **self._score(central_iteration + 1))
        self._first = False
        return self._wait(), Metrics()


def main(name: str, folder: str) -> None:
    work = WORKS[name]
    torch.set_num_threads(1)
    x, y = load(folder, name)
    module = make_model(work)
    module.loss = lambda x_b, y_b: torch.nn.functional.cross_entropy(module(x_b), y_b)
    module.metrics = lambda x_b, y_b: {}
    model = PyTorchModel(
        module,
        lambda params, lr: torch.optim.SGD(params, lr=lr, fused=True),
        torch.optim.SGD(module.parameters(), lr=1.0),
    )
    users = FederatedDataset.from_slices(
        {user: [x[user], y[user]] for user in range(work.clients)},
        get_user_sampler("minimize_reuse", range(work.clients)),
    )
    FederatedAveraging().run(
        NNAlgorithmParams(ENDLESS, ENDLESS, work.cohort, 0),
        SimulatedBackend(users, None),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=work.batch_size),
        callbacks=[Turns(lambda number: score(number, name, folder, lambda: module))],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
