"""What a chunk's clients do together for the methods of ``runner.client.methods``, in batched programs.

Each function is the one of the same name in ``choosing`` or ``personal``, for all clients of a chunk at once: the same
maths, and the same replies up to rounding (tested against them). A method without one here runs client by client.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from torch import Tensor

from runner.arrays import read_array, write_array
from runner.client.batched import Program
from runner.client.choosing import best, importance
from runner.client.layers import UnsupportedError
from runner.client.methods import Done
from runner.client.personal import gradient_weight, renewed
from runner.client.pool import Examples
from runner.client.training import LocalTraining
from runner.client.vectorized import losses_of_each, train_many


@dataclass(frozen=True)
class ChunkWork:
    """The tasks of a chunk's C clients, who share their configuration."""

    program: Program
    examples: Examples
    places: Sequence[tuple[int, int]]  # of each client's training examples
    hp: LocalTraining
    seeds: Sequence[int]
    config: Mapping[str, Any]
    messages: Sequence[Message]
    contexts: Sequence[Context]
    initial: Callable[[], ArrayRecord]  # the trial's initial model
    told: dict[int, RecordDict] = field(default_factory=dict)
    """What an evaluation says beside its metrics, by place in the chunk: filled in place."""

    def values(self, records: Sequence[ArrayRecord]) -> Tensor:
        """Return records as flat weights (R, P).

        Raises
        ------
        UnsupportedError
            One has other names or shapes than the model.
        """
        shapes, rows = self.program.shapes, []
        for record in records:
            if {name: tuple(array.shape) for name, array in record.items()} != shapes:
                raise UnsupportedError("arrays that do not fit the model")
            rows.append(np.concatenate([read_array(record[name]).ravel() for name in shapes]))
        return torch.from_numpy(np.stack(rows)).to(self.examples.y.device)

    def start(self, records: Sequence[ArrayRecord]) -> Tensor:
        """Return one record per client as weights (C, P), or (P,) where it is the same for all."""
        return self.values(records[:1])[0] if all_same(records) else self.values(records)

    def record(self, row: Tensor) -> ArrayRecord:
        """Return flat weights (P,) as the record that the model itself would give."""
        values, record, first = row.cpu().numpy(), ArrayRecord(), 0
        for name, shape in self.program.shapes.items():
            record[name] = write_array(values[first : first + prod(shape)].reshape(shape))
            first += prod(shape)
        return record

    def sent(self, name: str) -> list[ArrayRecord]:
        """Return what each client was sent under a name."""
        return [message.content.array_records[name] for message in self.messages]

    def own_or(self, state: str, sent: Sequence[ArrayRecord]) -> list[ArrayRecord]:
        """Return what each client remembers under a name; what it was sent where it remembers nothing."""
        return [
            context.state.array_records.get(state, record) for context, record in zip(self.contexts, sent, strict=True)
        ]

    def candidates(self) -> Tensor:
        """Return the K models that all clients were sent, (K, P)."""
        models = [list(message.content.array_records.values()) for message in self.messages]
        if not all(all_same(column) for column in zip(*models, strict=True)):
            raise UnsupportedError("the clients of a chunk choose among different models")
        return self.values(models[0])

    def losses(self, candidates: Tensor) -> list[Tensor]:
        """Return each client's losses float64 (n, K) on its training examples."""
        return losses_of_each(self.program, candidates, self.examples, self.places)

    def train(self, start: Tensor, hp: LocalTraining | None = None, **kwargs: Tensor) -> tuple[list[Tensor], list[Any]]:
        """Run ``train_many`` on the clients' training examples."""
        return train_many(self.program, start, self.examples, self.places, hp or self.hp, self.seeds, **kwargs)


def all_same(records: Sequence[ArrayRecord]) -> bool:
    """Return whether records hold the same arrays: the very same, as the copies of one message do."""
    first = records[0]
    return all(
        record.keys() == first.keys() and all(record[name] is first[name] for name in first) for record in records[1:]
    )


def mean_losses(work: ChunkWork) -> list[list[float]]:
    """Return each client's mean training loss under each model."""
    return [losses.mean(dim=0).tolist() for losses in work.losses(work.candidates())]


def choose(work: ChunkWork) -> list[Done]:
    """Train the model with the lowest training loss (IFCA)."""
    models = work.candidates()
    losses = [own.mean(dim=0).tolist() for own in work.losses(models)]
    clusters = [best(own) for own in losses]
    rows, results = work.train(models[clusters])
    choices = [ConfigRecord({"cluster": k, "losses": own}) for k, own in zip(clusters, losses, strict=True)]
    return [
        Done(result, work.record(row), records={"choice": choice})
        for row, result, choice in zip(rows, results, choices, strict=True)
    ]


def chosen(work: ChunkWork) -> Tensor:
    """Return each client's model with the lowest training loss, (C, P)."""
    models = work.candidates()
    losses = [own.mean(dim=0).tolist() for own in work.losses(models)]
    clusters = [best(own) for own in losses]
    for i, (cluster, own) in enumerate(zip(clusters, losses, strict=True)):
        work.told[i] = RecordDict({"choice": ConfigRecord({"cluster": cluster, "losses": own})})
    return models[clusters]


def softly_chosen(work: ChunkWork) -> Tensor:
    """Return each client's model of its largest share, (C, P)."""
    models, sigma = work.candidates(), float(work.config.get("sigma", 0.0))
    shares = [importance(own, sigma) for own in work.losses(models)]
    clusters = [int(np.argmax(own)) for own in shares]
    for i, (cluster, own) in enumerate(zip(clusters, shares, strict=True)):
        work.told[i] = RecordDict({"choice": ConfigRecord({"cluster": cluster, "weights": own})})
    return models[clusters]


def soft(work: ChunkWork) -> list[Done]:
    """Train towards all models in proportion to u (FedSoft)."""
    models, states = work.candidates(), [context.state for context in work.contexts]
    anew = [bool(work.config.get("estimate", True)) or "soft" not in state for state in states]
    losses = work.losses(models) if any(anew) else [models.new_empty(0)] * len(states)
    sigma = float(work.config.get("sigma", 0.0))
    shares = [
        importance(own, sigma) if new else [float(u) for u in state.metric_records["soft"]["weights"]]  # type: ignore[union-attr]
        for own, new, state in zip(losses, anew, states, strict=True)
    ]
    u = torch.tensor(shares, dtype=torch.float64, device=models.device)
    centres = (u / u.sum(1, keepdim=True)).to(models) @ models
    rows, results = work.train(centres, mu=(float(work.config["lambda"]) * u.sum(1)).to(models))
    done = []
    for row, result, own, state in zip(rows, results, shares, states, strict=True):
        state["soft"] = MetricRecord({"weights": own})
        choice = ConfigRecord({"cluster": int(np.argmax(own)), "weights": own})
        done.append(Done(result, work.record(row), records={"choice": choice}))
    return done


def scaffold(work: ChunkWork) -> list[Done]:
    """Train with gradients corrected by c - c_i, then renew c_i (SCAFFOLD, option II)."""
    if work.hp.optimizer != "sgd":
        raise UnsupportedError("SCAFFOLD's correction needs training.optimizer=sgd")
    start, c = work.start(work.sent("arrays")), work.values(work.sent("control")[:1])
    if not all_same(work.sent("control")):
        raise UnsupportedError("the clients of a chunk have different controls")
    zero = work.record(torch.zeros_like(c[0]))
    c_i = work.values(work.own_or("scaffold", [zero] * len(work.places)))
    rows, results = work.train(start, correction=c - c_i)
    done = []
    for i, (row, result, context) in enumerate(zip(rows, results, work.contexts, strict=True)):
        weight = gradient_weight(work.hp.lr, work.hp.momentum, int(result["steps"]))
        after = renewed(start if start.ndim == 1 else start[i], row, c[0] - c_i[i], weight)
        context.state["scaffold"] = work.record(after)
        done.append(Done(result, work.record(row), records={"control": work.record(after - c_i[i])}))
    return done


def ditto(work: ChunkWork) -> list[Done]:
    """Train the global model; then the personal one, pulled to the global model as it was sent (Ditto)."""
    sent = work.sent("arrays")
    start, own = work.start(sent), work.start(work.own_or("ditto", sent))
    rows, results = work.train(start)
    updates = [work.record(row) for row in rows]
    hp = replace(work.hp, proximal_mu=float(work.config["lambda"]))
    if epochs := int(work.config.get("personal-epochs", 0)):
        hp = replace(hp, epochs=epochs, steps=0)
    rows, personal = work.train(own, hp, anchor=start)
    for row, context in zip(rows, work.contexts, strict=True):
        context.state["ditto"] = work.record(row)
    return [
        Done(result, update, {"personal_loss": alone["loss"]})
        for result, update, alone in zip(results, updates, personal, strict=True)
    ]


def ditto_models(work: ChunkWork) -> Tensor:
    """Return the personal models; a client that never trained has the global one."""
    return work.values(work.own_or("ditto", work.sent("arrays")))


def fedper(work: ChunkWork) -> list[Done]:
    """Train base and head together; keep the head, send the base (FedPer)."""
    rows, results = work.train(fedper_models(work))
    head, done = set(work.config["head"]), []
    for row, result, context in zip(rows, results, work.contexts, strict=True):
        trained = work.record(row)
        context.state["fedper"] = ArrayRecord({key: array for key, array in trained.items() if key in head})
        done.append(Done(result, ArrayRecord({key: array for key, array in trained.items() if key not in head})))
    return done


def fedper_models(work: ChunkWork) -> Tensor:
    """Return the base that was sent under each client's own head; the initial model's until it has trained."""
    bases = work.sent("arrays")
    heads = work.own_or("fedper", [work.initial()] * len(bases))
    joined = zip(bases, heads, strict=True)
    names = list(work.program.shapes)
    return work.values([ArrayRecord({key: base.get(key, head.get(key)) for key in names}) for base, head in joined])


def finetuned(work: ChunkWork) -> Tensor:
    """Return the global model after some epochs on each client's training examples."""
    hp = replace(work.hp, epochs=int(work.config["finetune-epochs"]), steps=0)
    return torch.stack(work.train(work.start(work.sent("arrays")), hp)[0])


TRAIN: dict[str, Callable[[ChunkWork], list[Done]]] = {
    "choose": choose,
    "soft": soft,
    "scaffold": scaffold,
    "ditto": ditto,
    "fedper": fedper,
}
PREPARE: dict[str, Callable[[ChunkWork], Tensor]] = {
    "choose": chosen,
    "soft": softly_chosen,
    "ditto": ditto_models,
    "fedper": fedper_models,
    "finetune": finetuned,
}
