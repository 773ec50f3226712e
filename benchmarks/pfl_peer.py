"""pfl-research: its FederatedAveraging and SimulatedBackend under ``torchrun``;
runs in ``.venv-bench``.

On CIFAR-10 it trains the CNN of its own benchmark, in its own form (apple/pfl-research,
benchmarks/model/pytorch/cnn.py and benchmarks/dataset/cifar10/numpy.py): images with their channels
last, ReLU before pooling, PyTorch's Dropout, users sampled at random. It is the same function of
the same weights as our ``simple_cnn``.
"""

import sys
import time

import numpy as np
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
from torch import nn

from benchmarks.contender import say
from benchmarks.work import PROCESSES, WORKS, load, make_model, score

ENDLESS = 10**6


class Turns(TrainingProcessCallback):
    """Rank 0 waits for its turn and answers;
    the other ranks wait for rank 0 in a collective operation.
    """

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


class ChannelsFirst(nn.Module):
    """What pfl's CNN does with its images first."""

    def forward(self, x):
        """Return images (N, H, W, C) as (N, C, H, W)."""
        return x.permute(0, 3, 1, 2)


def with_channels_last(ours: nn.Module) -> nn.Module:
    """Return pfl's CNN with the weights of our ``simple_cnn``."""
    flat, classes = ours.fc1.in_features, ours.output.out_features
    theirs = nn.Sequential(
        ChannelsFirst(), nn.Conv2d(ours.conv1.in_channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3),
        nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25), nn.Flatten(), nn.Linear(flat, 128), nn.ReLU(),
        nn.Dropout(0.5), nn.Linear(128, classes),
    )  # fmt: skip
    return copy_weights(ours, theirs)


@torch.no_grad()
def copy_weights(of: nn.Module, to: nn.Module) -> nn.Module:
    """Give a network the weights of another whose parameters come in the same order; return it."""
    for w, v in zip(to.parameters(), of.parameters(), strict=True):
        w.copy_(v)
    return to


def main(name: str, folder: str, seed: str = "0") -> None:
    work = WORKS[name]
    torch.set_num_threads(1)
    x, y = load(folder, name)
    module = make_model(work, int(seed))
    if work.model == "simple_cnn":
        module, x = with_channels_last(module), x.permute(0, 1, 3, 4, 2).contiguous()
    module.loss = lambda x_b, y_b, eval=False: nn.functional.cross_entropy(
        module.train(not eval)(x_b), y_b
    )
    module.metrics = lambda x_b, y_b: {}
    model = PyTorchModel(
        module,
        lambda params, lr: torch.optim.SGD(params, lr=lr, fused=True),
        torch.optim.SGD(module.parameters(), lr=1.0),
    )
    np.random.seed(int(seed))  # of the users drawn: the same in all processes, as pfl wants it
    torch.manual_seed(PROCESSES * int(seed) + get_ops().distributed.global_rank)  # of dropout
    users = FederatedDataset.from_slices(
        {user: [x[user], y[user]] for user in range(work.clients)},
        get_user_sampler(
            "random" if work.cohort < work.clients else "minimize_reuse", range(work.clients)
        ),
    )
    tested = make_model(work)
    FederatedAveraging().run(
        NNAlgorithmParams(ENDLESS, ENDLESS, work.cohort, 0),
        SimulatedBackend(users, None),
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.lr, local_batch_size=work.batch_size
        ),
        callbacks=[
            Turns(lambda number: score(number, name, folder, lambda: copy_weights(module, tested)))
        ],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
