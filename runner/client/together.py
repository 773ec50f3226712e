"""A chunk of messages run in one batched program, in place of one client after the other.

``training.engine`` decides: ``sequential`` never does, ``vectorized`` does wherever it can, ``auto`` measures both on
its first chunk of a kind and keeps the faster. What can't be run together goes to the Flower ClientApp message by
message, and a note says why, once. A client has the same examples, batches and hyperparameters either way; its
numbers differ by rounding.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.typing import Mod
from torch.nn import functional as F

from runner.client import chunkwork
from runner.client.batched import Program
from runner.client.chunkwork import ChunkWork, all_same
from runner.client.layers import UnsupportedError
from runner.client.messages import (
    eval_metrics,
    make_reply,
    message_config,
    own_or_sent,
    partition_id,
    train_metrics,
)
from runner.client.methods import Done
from runner.client.pool import Read
from runner.client.training import LocalTraining, predict, train
from runner.client.vectorized import logits_of_each, predict_many
from runner.load import TaskMeter, node_load

if TYPE_CHECKING:
    from runner.client.app import BuiltinClient

Engine = Literal["sequential", "vectorized", "auto"]
Replies = list[tuple[Message, float]]
"""Each message's reply, and its share of the work in any unit."""

_faster: dict[Hashable, bool] = {}
"""What ``auto`` measured in this process: whether the batched program was faster for a model, batch and device."""


class ChunkRunner:
    """Runs chunks for one trial's ClientApp.

    Parameters
    ----------
    client : BuiltinClient
        What a process holds: model, examples, device.
    engine : "sequential" | "vectorized" | "auto"
        ``training.engine``.
    mods : sequence of Mod
        Flower mods around training, the outermost first: each is given its own client's reply.
    """

    def __init__(self, client: "BuiltinClient", engine: Engine, mods: Sequence[Mod] = ()) -> None:
        self._client, self._engine, self._mods = client, engine, mods
        self._said: set[str] = set()
        self._notes: list[str] = []

    def run(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message] | None:
        """Return one reply a message, with its client's share of the chunk's load; None: run them one by one."""
        kinds = {message.metadata.message_type for message in messages}
        work = {"train": self._train, "evaluate": self._evaluate, "query.losses": self._losses}.get(next(iter(kinds)))
        if self._engine == "sequential" or len(kinds) > 1 or work is None:
            return None
        try:
            with TaskMeter() as meter:
                config = _common_config(messages)
                done = _halving(partial(work, config), messages, contexts, self._say)
        except UnsupportedError as error:
            self._say(f"training.engine={self._engine}: clients are trained one by one: {error}")
            return None
        except Exception as error:  # one client's fault must not be its neighbours': alone, each has its own reply
            self._say(f"a chunk runs client by client after {type(error).__name__}: {error}")
            return None
        if done is None:
            return None
        cpu, mem = node_load()
        total = sum(cost for _, cost in done)
        for reply, cost in done:
            if reply.has_content():
                share = cost / total
                load: dict[str, Any] = {
                    "cpu_s": meter.cpu_s * share,
                    "wall_s": meter.wall_s * share,
                    "rss_mb": meter.rss_mb * share,
                }
                reply.content["load"] = ConfigRecord(load | {"node_cpu": cpu, "node_mem": mem})
        return [reply for reply, _ in done]

    def notes(self) -> list[str]:
        """Return the lines written since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _train(self, config: ConfigRecord, messages: Sequence[Message], contexts: Sequence[Context]) -> Replies | None:
        method = chunkwork.TRAIN.get(str(config.get("method", "")))
        if method is None and "method" in config:
            return None
        work = self._work("train", config, messages, contexts, self._places(config, contexts)[0])
        if self._engine == "auto" and not self._keeps(work):
            return None
        done = method(work) if method else _plain(work)
        replies = []
        for message, context, result, (_, count) in zip(messages, contexts, done, work.places, strict=True):
            keeps = bool(config.get("keep-local")) and not method
            if keeps:
                context.state["model"] = result.arrays
            metrics = train_metrics(result.result, count) | dict(result.metrics)
            reply = make_reply(message, metrics, None if keeps else result.arrays)
            reply.content.update(result.records)
            replies.append(self._through_mods(message, context, reply))
        hp, counts = work.hp, [count for _, count in work.places]
        seen = [hp.steps * min(hp.batch_size or n, n) if hp.steps else hp.epochs * n for n in counts]
        return list(zip(replies, seen, strict=True))

    def _evaluate(
        self, config: ConfigRecord, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> Replies | None:
        method = chunkwork.PREPARE.get(str(config.get("method", "")))
        if method is None and "method" in config:
            return None
        own, places = self._places(config, contexts, scored=True)
        examples, counts = self._client.pool.all, [count for _, count in places]
        there = [i for i, count in enumerate(counts) if count]  # who holds out something
        pairs = zip(messages, contexts, strict=True)
        sent = [] if method else [own_or_sent(message, context, config) for message, context in pairs]
        told: dict[int, RecordDict] = {}
        # One model, of whatever layers, on everybody's examples; or the models of all, in the program.
        values = None
        if not sent or not all_same(sent):
            work = self._work("prepare", config, messages, contexts, own)
            values = method(work) if method else work.values(sent)
            told = work.told
        sums = [(0.0, 0)] * len(messages)
        if there:
            held_out = [places[i] for i in there]
            if values is None:
                rows = torch.cat([torch.arange(first, first + n) for first, n in held_out])
                model, parts = self._client.load(sent[0]), rows.to(examples.y.device).split(4096)
                logits = torch.cat([predict(model, examples.images(part)) for part in parts])
            else:
                some = values if len(there) == len(values) else values[there]
                logits = torch.cat(predict_many(self._program, some, examples, held_out))
            labels, sizes = examples.labels(held_out), [n for _, n in held_out]
            losses = F.cross_entropy(logits.double(), labels, reduction="none").split(sizes)
            correct = (logits.argmax(1) == labels).split(sizes)
            for i, loss, hits in zip(there, losses, correct, strict=True):
                sums[i] = float(loss.sum()), int(hits.sum())
        replies = [
            make_reply(message, eval_metrics(n, loss_sum, hits))
            for message, n, (loss_sum, hits) in zip(messages, counts, sums, strict=True)
        ]
        for i, records in told.items():
            replies[i].content.update(records)
        seen = [max(n, 1) for n in counts]
        if config.get("test-own"):
            for i, record in enumerate(self._test_own(config, contexts, values, sent)):
                replies[i].content["test"] = record
                seen[i] += int(record["num-examples"])  # type: ignore[arg-type]
        return list(zip(replies, seen, strict=True))

    def _test_own(
        self,
        config: ConfigRecord,
        contexts: Sequence[Context],
        values: torch.Tensor | None,
        sent: Sequence[ArrayRecord],
    ) -> list[ConfigRecord]:
        """Return each client's scores on the central test set: of its own model, (C, P), or of the one of all."""
        client = self._client
        by_sets: dict[tuple[Hashable, ...], list[int]] = {}  # the slices of a group's test set -> its clients
        reads: dict[Hashable, Read] = {}
        for i, context in enumerate(contexts):
            sets = client.test_sets(config, partition_id(context))
            by_sets.setdefault(tuple(key for key, _ in sets), []).append(i)
            reads.update(sets)
        sums = [client.test_sums() for _ in contexts]
        for keys, clients in by_sets.items():
            for key in keys:
                [place] = client.pool.places({key: reads[key]})
                examples, rows = client.pool.all, slice(place[0], sum(place))
                if not place[1]:
                    continue
                if values is None:
                    logits = predict(client.load(sent[0]), examples.images(rows))
                    of_each: Iterable[torch.Tensor] = [logits] * len(clients)
                else:
                    of_each = logits_of_each(self._program, values[clients], examples, place)
                for i, logits in zip(clients, of_each, strict=True):
                    sums[i].add(logits, examples.y[rows])
        return [own.record() for own in sums]

    def _losses(self, config: ConfigRecord, messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
        work = self._work("losses", config, messages, contexts, self._places(config, contexts)[0])
        losses, counts = chunkwork.mean_losses(work), [count for _, count in work.places]
        return [
            (make_reply(message, {"losses": own, "num-examples": n}), n)
            for message, own, n in zip(messages, losses, counts, strict=True)
        ]

    def _places(
        self, config: ConfigRecord, contexts: Sequence[Context], *, scored: bool = False
    ) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the places of the clients' training examples, and of what they are scored on, as far as needed."""
        client, clients = self._client, [partition_id(context) for context in contexts]
        torch.set_num_threads(client.threads)  # per task: trials with other settings share the process
        trained = [client.train_set(config, c) for c in clients] if not scored or "method" in config else []
        tested = [client.evaluation_set(config, c) for c in clients] if scored else []
        sets = dict(tested + trained)
        placed = dict(zip(sets, client.pool.places(sets), strict=True))
        return [placed[key] for key, _ in trained], [placed[key] for key, _ in tested]

    def _work(
        self,
        purpose: str,
        config: ConfigRecord,
        messages: Sequence[Message],
        contexts: Sequence[Context],
        places: list[tuple[int, int]],
    ) -> ChunkWork:
        client = self._client
        return ChunkWork(
            program=self._program,
            examples=client.pool.all,
            places=places,
            hp=LocalTraining.from_config(config),
            seeds=[client.seed(purpose, config, partition_id(context)) for context in contexts],
            config=config,
            messages=messages,
            contexts=contexts,
            initial=client.initial,
        )

    def _through_mods(self, message: Message, context: Context, reply: Message) -> Message:
        """Return what the mods around training make of a client's reply."""

        def call(sent: Message, _: Context) -> Message:
            if sent is not message:
                raise UnsupportedError("a Flower mod changes what clients are sent")
            return reply

        for mod in reversed(self._mods):
            call = partial(_call_mod, mod, call)
        return call(message, context)

    @cached_property
    def _program(self) -> Program:
        return Program(self._client.model, self._client.pool.all.x.shape[1:], self._client.device)

    def _keeps(self, work: ChunkWork) -> bool:
        """Return what ``auto`` uses for such chunks: measured the first time, the second of two runs of each."""
        client, hp, count = self._client, work.hp, len(work.places)
        device, (first, alone) = client.device, work.places[0]
        key = (client.spec.name, str(client.spec.kwargs), work.examples.x.shape[1:], hp.batch_size, hp.optimizer,
               min(count, 16), str(device), client.threads)  # fmt: skip
        if key not in _faster:
            start = next(iter(work.messages[0].content.array_records.values()))
            if work.config.get("keep-local"):
                start = own_or_sent(work.messages[0], work.contexts[0], work.config)
            rows, flat = slice(first, first + alone), work.values([start])[0]
            images, labels = work.examples.images(rows), work.examples.y[rows]
            batched = _seconds(lambda: work.train(flat), device) / sum(count for _, count in work.places)
            single = _seconds(lambda: train(client.load(start), images, labels, hp, 0), device) / alone
            _faster[key] = batched < single
            self._say(
                f"training.engine=auto: {'vectorized' if _faster[key] else 'sequential'} for "
                f"{client.spec.name} in chunks of {count} on {device}: {batched * 1e6:.0f} us "
                f"an example against {single * 1e6:.0f}; set training.engine to it for a run that repeats to the bit"
            )
        return _faster[key]

    def _say(self, note: str) -> None:
        """Note a line, unless the same was noted before."""
        kind = note.split(": ")[0] if "auto" in note else note
        if kind not in self._said:
            self._said.add(kind)
            self._notes.append(" ".join(note.split()))


def _plain(work: ChunkWork) -> list[Done]:
    """Train every client's model: its own where it keeps one, else what it was sent."""
    models = _models(work)
    before: list[dict[str, float]] = [{} for _ in models]
    if work.config.get("start-loss"):
        if not all_same(models):
            raise UnsupportedError("losses before training of models that differ")
        losses = work.losses(work.values(models[:1]))
        before = [{"start_loss": float(own.mean())} for own in losses]
    rows, results = work.train(work.start(models))
    done = zip(rows, results, before, strict=True)
    return [Done(result, work.record(row), metrics) for row, result, metrics in done]


def _models(work: ChunkWork) -> list[ArrayRecord]:
    pairs = zip(work.messages, work.contexts, strict=True)
    return [own_or_sent(message, context, work.config) for message, context in pairs]


def _call_mod(mod: Mod, call: Callable[[Message, Context], Message], message: Message, context: Context) -> Message:
    return mod(message, context, call)


def _common_config(messages: Sequence[Message]) -> ConfigRecord:
    """Return the configuration of all messages.

    Raises
    ------
    UnsupportedError
        They differ.
    """
    first = message_config(messages[0])
    if any(dict(message_config(message)) != dict(first) for message in messages[1:]):
        raise UnsupportedError("the clients of a chunk have different hyperparameters")
    return first


def _halving(
    work: Callable[[Sequence[Message], Sequence[Context]], Replies | None],
    messages: Sequence[Message],
    contexts: Sequence[Context],
    say: Callable[[str], None],
) -> Replies | None:
    """Run a chunk; where the memory does not suffice, in halves, and halves of halves."""
    done: Replies = []
    size = len(messages)
    while len(done) < len(messages):
        part = slice(len(done), len(done) + size)
        try:
            replies = work(messages[part], contexts[part])
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            say(f"the device's memory does not suffice for a chunk of {len(messages)} clients; {size} go together")
            continue
        if replies is None:
            return None
        done += replies
    return done


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    run()  # memory, kernels and caches are warm from here
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started
