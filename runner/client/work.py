"""A chunk's clients at their tasks: messages in, replies out, whatever trains them.

One client is a chunk of one. What a client does is said by the method's client part
(``fedsweep.strategies.clients``), which gets a :class:`ChunkWork`.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import nan
from typing import cast

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord
from numpy.typing import NDArray

from fedsweep.client.compressing import compress
from fedsweep.client.messages import (
    Metrics,
    eval_metrics,
    make_reply,
    message_config,
    partition_id,
    table_record,
    train_metrics,
)
from fedsweep.client.process import ClientProcess
from fedsweep.parts.code import place_of
from fedsweep.strategies.arrays import ModelRows
from fedsweep.strategies.clients import (
    METHOD,
    Batch,
    ClientPart,
    Contrast,
    Steps,
    Trained,
    Update,
    Values,
)
from fedsweep.strategies.models import Mixture, Models, all_same
from fedsweep.strategies.registry import STRATEGIES
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining, Sums
from fedsweep.training.pool import Place, Read
from fedsweep.training.stepping import LocalData
from fedsweep.training.targets import in_unit
from fedsweep.training.trainers import Penalty, Stepping, Trainer


class ChunkWork:
    """The tasks of C clients: :class:`fedsweep.strategies.clients.Work`.

    Parameters
    ----------
    client : ClientProcess
        What the process holds: the network, the examples, the seeds.
    trainer : Trainer
        What trains and scores.
    messages, contexts : sequences of C
        One per client; their configuration is the same, but for the round that they were asked in.
    purpose : str
        What is drawn for: ``train`` or ``prepare``, before an evaluation.
    """

    def __init__(
        self,
        client: ClientProcess,
        trainer: Trainer,
        messages: Sequence[Message],
        contexts: Sequence[Context],
        purpose: str,
    ) -> None:
        torch.set_num_threads(client.threads)  # per task: trials with others share the process
        self._client, self._trainer = client, trainer
        self._messages, self._contexts = messages, contexts
        self.config = message_config(messages[0])
        self.local = LocalTraining.from_config(self.config)
        self.told: dict[str, Sequence[Values]] = {}
        self._clients = [partition_id(context) for context in contexts]
        self._configs = [message_config(message) for message in messages]
        self._seeds = [
            client.seed(purpose, config, c)
            for config, c in zip(self._configs, self._clients, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._messages)

    @cached_property
    def places(self) -> list[Place]:
        """Where the clients' training examples lie."""
        pairs = zip(self._configs, self._clients, strict=True)
        return self._client.places([self._client.train_set(config, c) for config, c in pairs])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Training examples of each client, (C,)."""
        return np.array([count for _, count in self.places])

    def class_counts(self) -> NDArray[np.int64]:
        """Return each client's training examples of each class, (C, classes)."""
        classes = self._client.num_classes
        return np.stack([np.bincount(y, minlength=classes) for y in self.labels()])

    def labels(self) -> list[NDArray[np.int64]]:
        """Return the classes of each client's training examples, (n,)."""
        places = self.places  # first: what is staged for them is in the pool from then on
        pool = self._client.pool.all
        return [pool.labels([place]).cpu().numpy() for place in places]

    # What the clients were sent and keep

    def sent(self, name: str = "arrays") -> Models:
        """Return what each client was sent under a name."""
        return self._models([message.content.array_records[name] for message in self._messages])

    def candidates(self) -> Models:
        """Return the K models that each client was sent.

        Raises
        ------
        UnsupportedError
            They are not the same for all.
        """
        models = [list(message.content.array_records.values()) for message in self._messages]
        if not all(all_same(column) for column in zip(*models, strict=True)):
            raise UnsupportedError("the clients of a chunk choose among different models")
        return self._models(models[0])

    def initial(self) -> Models:
        """Return the trial's initial model, for each client."""
        return self._models([self._client.initial()] * len(self))

    def kept(self, name: str, otherwise: Models) -> Models:
        """Return what each client keeps under a name; its own of ``otherwise`` where nothing."""
        states = [context.state.array_records.get(name) for context in self._contexts]
        if all(own is None for own in states):
            return otherwise
        others = otherwise.records
        return self._models(
            [other if own is None else own for own, other in zip(states, others, strict=True)]
        )

    def keep(self, name: str, models: Models) -> None:
        """Have each client keep its own of C models under a name."""
        for context, record in zip(self._contexts, models.records, strict=True):
            context.state[name] = record

    def recalled(self, name: str) -> list[Values | None]:
        """Return the numbers that each client keeps under a name; None where there are none."""
        return [context.state.metric_records.get(name) for context in self._contexts]

    def remember(self, name: str, values: Sequence[Values]) -> None:
        """Have each client keep its own numbers under a name."""
        for context, own in zip(self._contexts, values, strict=True):
            context.state[name] = MetricRecord(dict(own))

    def tell(self, name: str, values: Sequence[Values]) -> None:
        """Put a record of each client into its reply."""
        self.told[name] = values

    # What they do

    def train(
        self,
        start: Models,
        *,
        anchor: Models | None = None,
        mu: float | Sequence[float] | None = None,
        correction: ModelRows | None = None,
        epochs: int = 0,
        only: Sequence[str] | None = None,
        contrast: Contrast | None = None,
        weights: Sequence[NDArray[np.float64]] | None = None,
    ) -> Trained:
        """Train a model per client, as the round's settings say."""
        hp = self.local
        if epochs:
            hp = replace(hp, epochs=epochs, steps=0)
        if isinstance(mu, int | float):
            hp, mu = replace(hp, proximal_mu=float(mu)), None
        how = Penalty(anchor, mu, correction, only, contrast, weights)
        return self._trainer.train(start, self._data(hp), how)

    def losses(self, models: Models) -> list[NDArray[np.float64]]:
        """Return the loss of each client's training examples under K models, (n, K)."""
        data = self._data(self.local)
        return self._trainer.losses(models, data.examples, data.places)

    def batches(self) -> Iterator[Batch]:
        """Yield the batches that ``train`` would take."""
        return self._stepping.batches()

    def begin(self, start: Models, *, proximal: bool = True) -> Steps:
        """Return C models to be trained by steps."""
        return self._stepping.begin(start, proximal=proximal)

    @cached_property
    def _stepping(self) -> Stepping:
        return self._trainer.steps(self._data(self.local))

    def _data(self, hp: LocalTraining) -> LocalData:
        places = self.places  # first: what is staged for them is in the pool from then on
        return LocalData(self._client.pool.all, places, hp, self._seeds)

    def _models(self, records: Sequence[ArrayRecord]) -> Models:
        return Models(self._client.layout, records)

    # Who does it, and how it is answered

    @property
    def part(self) -> ClientPart:
        """The client part that the config names; FedAvg's where it names none.

        Raises
        ------
        ValueError
            This client does not know it.
        """
        return STRATEGIES.client_part(str(self.config.get(METHOD, "")))

    def reply(self, c: int, metrics: Metrics, arrays: ArrayRecord | None = None) -> Message:
        """Return a client's reply, with what the part told of it."""
        reply = make_reply(self._messages[c], metrics, arrays)
        for name, values in self.told.items():
            reply.content[name] = ConfigRecord(dict(values[c]))
        return reply


def train_chunk(
    client: ClientProcess,
    trainer: Trainer,
    messages: Sequence[Message],
    contexts: Sequence[Context],
) -> list[Message]:
    """Train the clients as the strategy's method says; return a reply each."""
    work = ChunkWork(client, trainer, messages, contexts, "train")
    update = _checked(work.part, work.part.fit(work), len(messages))
    models = None if update.models is None else update.models.records
    replies = []
    for c, (_, count) in enumerate(work.places):
        metrics = train_metrics(update.results[c], count)
        metrics |= {name: values[c] for name, values in update.metrics.items()}
        reply = work.reply(c, metrics, None if models is None else models[c])
        for name, more in update.arrays.items():
            reply.content[name] = more.records[c]
        replies.append(reply)
    if client.compressor is not None:
        seeds = [
            client.seed("compress", message_config(message), partition_id(context))
            for message, context in zip(messages, contexts, strict=True)
        ]
        compress(client.compressor, client.layout, messages, contexts, replies, seeds)
    return replies


def _checked(part: ClientPart, update: object, clients: int) -> Update:
    """Return what a part's training gave, or refuse it by where that is written."""
    place = f"{place_of(type(part).fit)} returns"
    if not isinstance(update, Update):
        raise TypeError(f"{place} {type(update).__name__}; return an Update")
    if len(update.results) != clients:
        raise ValueError(f"{place} {len(update.results)} results for {clients} clients")
    models: object = update.models
    if not isinstance(models, Models | None):
        kind = type(models).__name__
        raise TypeError(
            f"{place} an Update whose models are a {kind}; give Update(results, models)"
        )
    return update


def evaluate_chunk(
    client: ClientProcess,
    trainer: Trainer,
    messages: Sequence[Message],
    contexts: Sequence[Context],
) -> tuple[list[Message], list[int]]:
    """Score the model that each client uses on what it holds out, and where asked on the test set.

    Returns
    -------
    list of Message
        One per client.
    list of int
        How many examples each was scored on.
    """
    work = ChunkWork(client, trainer, messages, contexts, "prepare")
    models = work.part.model(work)
    clients = [partition_id(context) for context in contexts]
    places = client.places([client.evaluation_set(work.config, c) for c in clients])
    by_class = bool(work.config.get("by-class"))
    sums = _scores(client, trainer, models, places, by_class=by_class)
    counts = [count for _, count in places]
    replies = [
        work.reply(c, eval_metrics(n, sums[c].loss, sums[c].correct)) for c, n in enumerate(counts)
    ]
    for reply, own in zip(replies, sums, strict=True):
        if own.table is not None:
            reply.content["classes"] = table_record(in_unit(own.table, client.target_unit))
    seen = [max(n, 1) for n in counts]
    if work.config.get("test-own"):
        for name in ("test", "goal") if work.config.get("goal") else ("test",):
            told = _test_own(client, trainer, models, work.config, clients, goal=name == "goal")
            for c, record in enumerate(told):
                replies[c].content[name] = record
                seen[c] += int(cast(int, record["num-examples"]))
    return replies, seen


def losses_of_chunk(
    client: ClientProcess,
    trainer: Trainer,
    messages: Sequence[Message],
    contexts: Sequence[Context],
) -> list[Message]:
    """Return each client's mean training loss under each model that it was sent, in their order."""
    work = ChunkWork(client, trainer, messages, contexts, "losses")
    losses = work.losses(work.candidates())
    return [
        make_reply(message, {"losses": own.mean(axis=0).tolist(), "num-examples": len(own)})
        for message, own in zip(messages, losses, strict=True)
    ]


def _scores(
    client: ClientProcess,
    trainer: Trainer,
    models: Models | Mixture,
    places: Sequence[Place],
    *,
    by_class: bool,
) -> list[Sums]:
    """Return each client's sums; zeros for one that holds nothing out."""
    sums = [Sums(correct=nan if client.learns_numbers else 0)] * len(places)
    there = [c for c, (_, count) in enumerate(places) if count]
    if not there:
        return sums
    examples, held_out = client.pool.all, [places[c] for c in there]
    some = models if len(there) == len(models) else models.take(there)
    found = trainer.scores(some, examples, held_out, by_class=by_class)
    for c, own in zip(there, found, strict=True):
        sums[c] = own
    return sums


def _test_own(
    client: ClientProcess,
    trainer: Trainer,
    models: Models | Mixture,
    config: ConfigRecord,
    clients: Sequence[int],
    *,
    goal: bool,
) -> list[ConfigRecord]:
    """Return each client's scores on the central test set, as its group sees it.

    With ``goal`` they are on what attackers want of it.
    """
    by_sets: dict[tuple[Hashable, ...], list[int]] = {}  # the slices of a test set -> its clients
    reads: dict[Hashable, Read] = {}
    for c, number in enumerate(clients):
        sets = client.test_sets(config, number, goal=goal)
        by_sets.setdefault(tuple(key for key, _ in sets), []).append(c)
        reads.update(sets)
    sums = [client.test_sums() for _ in clients]
    for keys, group in by_sets.items():
        some = models if len(group) == len(models) else models.take(group)
        for key in keys:
            [(first, count)] = client.places([(key, reads[key])])
            if not count:
                continue
            examples = client.pool.all
            labels = examples.y[first : first + count]
            for c, logits in zip(
                group, trainer.logits_on_all(some, examples, (first, count)), strict=True
            ):
                sums[c].add(logits, labels)
    return [own.record() for own in sums]
