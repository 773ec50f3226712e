"""All clients of a chunk trained in one batched program. Imports torch and NumPy only.

:func:`train_many` gives every client what :func:`fedsweep.training.local.train` gives it, up to
rounding: the same batches in the same order, each client with weights and optimizer state of its
own.
"""

from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor

from fedsweep.training.batched import MAX_BLOCK, Program
from fedsweep.training.blocks import Block, DualBlock, Penalties
from fedsweep.training.dual import pays
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining, precision_of
from fedsweep.training.pool import Examples, Place
from fedsweep.training.targets import counted_hits, loss_of
from fedsweep.training.timetable import Passes, longest_first, passes_of

DUAL_FLOATS = 2**22
"""Floats of the examples of a block in dual form, and of what is computed of them."""


def train_many(
    program: Program,
    start: Tensor,
    examples: Examples,
    places: Sequence[Place],
    hp: LocalTraining,
    seeds: Sequence[int],
    *,
    correction: Tensor | None = None,
    anchor: Tensor | None = None,
    mu: Tensor | None = None,
    moves: Tensor | None = None,
    weights: Sequence[np.ndarray] | None = None,
) -> tuple[list[Tensor], list[dict[str, float]]]:
    """Train every client of a chunk.

    Parameters
    ----------
    program : Program
        The network.
    start : Tensor
        Weights of the round's start, (P,) for all clients or (C, P).
    examples : Examples
        Of all clients.
    places : sequence of (int, int)
        Each client's first row, and its number of rows.
    hp : LocalTraining
        Hyperparameters.
    seeds : sequence of int
        One per client, as ``train`` takes it.
    correction : Tensor, optional
        (C, P), added to each step's gradient: SCAFFOLD's c - c_i.
    anchor : Tensor, optional
        Where the proximal term pulls, like ``start``; ``start`` by default.
    mu : Tensor, optional
        (C,), each client's own weight of the proximal term; ``hp.proximal_mu`` by default.
    moves : Tensor, optional
        (P,), which parameters move; all by default.
    weights : sequence of C arrays, optional
        Float (n,), what each of a client's examples' losses is multiplied by; 1 by default.

    Returns
    -------
    list of Tensor
        Each client's weights (P,), in the program's memory: they hold until it trains again.
    list of dict
        What ``train`` returns, per client.
    """
    passes = passes_of(examples, places, hp, seeds, weights)
    batch = max(each.batch for each in passes)
    if program.draws and batch > (most := program.columns(start.device)):
        raise UnsupportedError(f"dropout in batches of more than {most} examples")
    if batch == 1 and program.wide_on_one:
        raise UnsupportedError(
            "wide convolutions of single small images are faster one by one on a CPU"
        )
    order = longest_first(passes)
    out = program.buffer("values", (len(passes), program.num_params), start)
    out.copy_(start if start.ndim == 1 else start[order])
    results: list[dict[str, float]] = [{}] * len(passes)
    done = 0
    while done < len(order):
        left = [passes[c] for c in order[done:]]
        clients, in_dual = _block(
            program, left, hp, start.device,
            drift=correction is not None or anchor is not None, whole=moves is None,
        )  # fmt: skip
        own = order[done : done + clients]
        penalties = _penalties(start, own, hp, correction, anchor, mu, moves)
        shared = start if start.ndim == 1 else None
        block = DualBlock if in_dual else Block
        values = out[done : done + clients]
        with precision_of(hp, start.device):
            own_seeds = [seeds[c] for c in own]
            loss_sum, correct = block(
                program, values, shared, examples, left[:clients], hp, penalties, own_seeds
            ).train()
        for c, each, loss, hits in zip(own, left, loss_sum, correct, strict=False):
            results[c] = {
                "loss": loss / each.seen,
                "accuracy": counted_hits(hits, examples.y) / each.seen,
                "steps": each.steps,
            }
        done += clients
    rows = {c: row for row, c in enumerate(order)}
    return [out[rows[c]] for c in range(len(passes))], results


def _block(
    program: Program,
    passes: Sequence[Passes],
    hp: LocalTraining,
    device: torch.device,
    *,
    drift: bool,
    whole: bool,
) -> tuple[int, bool]:
    """Return how many clients go together, and whether their first layer trains dually."""
    clients, columns = program.block(passes[0].batch, device)
    if (
        whole
        and program.first_linear
        and hp.optimizer == "sgd"
        and hp.augment == "none"
        and passes[0].batch <= columns
    ):
        outputs, inputs = program.first_linear
        n = max(each.count for each in passes)
        together = _even(
            len(passes), max(1, min(MAX_BLOCK, DUAL_FLOATS // (n * (inputs + 4 * outputs + n))))
        )
        seen, steps = (
            sum(getattr(each, what) for each in passes[:together]) / together
            for what in ("seen", "steps")
        )
        if pays(inputs, outputs, n, seen, steps, drift=drift):
            return together, True
    return _even(len(passes), clients), False


def _even(count: int, most: int) -> int:
    """Return the size of equal blocks of so many at most."""
    return ceil(count / ceil(count / most))


def _penalties(
    start: Tensor,
    own: list[int],
    hp: LocalTraining,
    correction: Tensor | None,
    anchor: Tensor | None,
    mu: Tensor | None,
    moves: Tensor | None,
) -> Penalties | None:
    """Return those of some clients, or None where there are none."""
    given = any(each is not None for each in (correction, mu, moves))
    if not (given or hp.proximal_mu or hp.weight_decay):
        return None
    weight = start.new_full((len(own), 1), hp.proximal_mu) if mu is None else mu[own].unsqueeze(1)
    push = None if correction is None else correction[own]
    if anchor is not None:
        towards = weight * (anchor if anchor.ndim == 1 else anchor[own])
        push = towards.neg_() if push is None else push - towards
    pulls = anchor is None and (mu is not None or hp.proximal_mu)
    return Penalties(weight + hp.weight_decay, weight if pulls else None, push, moves)


@torch.no_grad()  # not inference_mode: the program's memory is written again by training
def predict_many(
    program: Program, values: Tensor, examples: Examples, places: Sequence[Place]
) -> list[Tensor]:
    """Return logits (n, classes) of models (C, P), on examples of their own or all on the same."""
    longest = max(count for _, count in places)
    clients, columns = program.block(longest, values.device)
    logits: list[Tensor] = []
    for i in range(0, len(places), clients):
        own = torch.tensor(places[i : i + clients])
        # A set shorter than its block's longest is filled up with its own last row.
        rows = own[:, :1] + torch.minimum(torch.arange(longest), own[:, 1:] - 1)
        weights = program.views(values[i : i + clients], values[i : i + clients])
        parts = [
            program.forward(weights, examples.images(r.flatten()).view(*r.shape, -1))[0]
            for r in rows.to(values.device).split(columns, 1)
        ]
        logits += [
            all_rows[:count]
            for all_rows, count in zip(torch.cat(parts, 1), own[:, 1].tolist(), strict=True)
        ]
    return logits


@torch.no_grad()  # not inference_mode: the program's memory is written again by training
def logits_of_each(
    program: Program, values: Tensor, examples: Examples, place: Place
) -> Iterator[Tensor]:
    """Yield the logits (n, classes) of each model, values (C, P), on the same examples;
    some models at a time.
    """
    first, count = place
    clients, columns = program.block(count, values.device)
    for some in values.split(clients):
        parts = [
            program.logits_of_each(
                some, examples.images(slice(i, min(i + columns, first + count))).flatten(1)
            )
            for i in range(first, first + count, columns)
        ]
        yield from torch.cat(parts, 1)


@torch.no_grad()  # not inference_mode: the program's memory is written again by training
def losses_of_each(
    program: Program, values: Tensor, examples: Examples, places: Sequence[Place]
) -> list[Tensor]:
    """Return the loss float64 (n, K) of a client's examples under K models (K, P)."""
    rows = torch.cat([torch.arange(first, first + count) for first, count in places]).to(
        values.device
    )
    at_once = max(1, program.columns(values.device) // len(values))
    parts = []
    for part in rows.split(at_once):
        logits = program.logits_of_each(values, examples.images(part).flatten(1)).double()
        y = examples.y.index_select(0, part).expand(len(values), -1)
        parts.append(
            loss_of(logits.flatten(0, 1), y.flatten(), reduction="none").view(len(values), -1).t()
        )
    return list(torch.cat(parts).split([count for _, count in places]))
