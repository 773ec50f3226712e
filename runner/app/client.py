"""What a host builds of an app's clients: its ClientApp, among modules and draws of its own."""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsweep.app.modules import AppCode, Modules
from fedsweep.seeding import derive_seed


class SeededClient:
    """An app's ClientApp, whose clients draw the same wherever and after whomever they work.

    Before each message the generators that all of a process shares (``random``, NumPy's, PyTorch's)
    are seeded by the trial's seed, the client and the message; they are put back after it.
    """

    def __init__(self, code: AppCode, seed: int, trial: str) -> None:
        self._modules, self._seed = Modules.of(code, trial), seed
        ready(code)
        self._app = self._modules.load(code.clientapp, ClientApp)

    def __call__(self, message: Message, context: Context) -> Message:
        """Return a client's reply."""
        self._modules.enter()
        told = message.metadata
        with seeded(derive_seed(self._seed, "client", told.dst_node_id, told.message_id)):
            reply: Message = self._app(message, context)
            return reply


def client_app(code: AppCode, seed: int, trial: str) -> Any:
    """Return what runs an app's clients on a host."""
    return SeededClient(code, seed, trial)


def ready(code: AppCode) -> None:
    """Have PyTorch here, where an app uses it, before the first draw: on a thread, as on any host.

    An app may import it in the midst of a task, whose draws would not be seeded then.
    """
    if code.imports("torch"):
        import torch

        torch.set_num_threads(1)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed what a process draws from; put the states back that there were before."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state(), torch and torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    if torch is not None:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        if torch is not None:
            torch.set_rng_state(states[2])
