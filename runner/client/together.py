"""A chunk of messages run in one batched program, in place of one client after the other.

``training.engine`` decides: ``sequential`` never does, ``vectorized`` does wherever it can, ``auto`` measures both on
its first chunk of a kind and keeps the faster. What can't be run together goes to the Flower ClientApp message by
message, and a note says why, once. A client has the same examples, batches and hyperparameters either way; its
numbers differ by rounding.
"""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from torch import Tensor
from torch.nn import functional as F

from runner.arrays import read_array, write_array
from runner.client.arrays import load_weights
from runner.client.batched import Program, UnsupportedError
from runner.client.messages import make_reply, message_config, own_or_sent, partition_id, train_metrics
from runner.client.training import LocalTraining, predict, train
from runner.client.vectorized import predict_many, train_many
from runner.load import TaskMeter, node_load

if TYPE_CHECKING:
    from runner.client.app import BuiltinClient

Engine = Literal["sequential", "vectorized", "auto"]

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
    has_mods : bool
        Whether Flower mods wrap training: they see one message at a time.
    """

    def __init__(self, client: "BuiltinClient", engine: Engine, has_mods: bool) -> None:
        self._client, self._engine, self._has_mods = client, engine, has_mods
        self._said: set[str] = set()
        self._notes: list[str] = []

    def run(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message] | None:
        """Return one reply a message, with its client's share of the chunk's load; None: run them one by one."""
        kinds = {message.metadata.message_type for message in messages}
        work = {"train": self._train, "evaluate": self._evaluate}.get(next(iter(kinds)))
        if self._engine == "sequential" or len(kinds) > 1 or work is None:
            return None
        try:
            with TaskMeter() as meter:
                done = work(messages, contexts)
        except UnsupportedError as error:
            self._say(f"training.engine={self._engine}: clients are trained one by one: {error}")
            return None
        except Exception as error:  # one client's fault must not be its neighbours': alone, each has its own reply
            self._say(f"a chunk runs client by client after {type(error).__name__}: {error}")
            return None
        if done is None:
            return None
        replies, shares = done
        cpu, mem = node_load()
        for reply, share in zip(replies, shares, strict=True):
            load: dict[str, Any] = {
                "cpu_s": meter.cpu_s * share,
                "wall_s": meter.wall_s * share,
                "rss_mb": meter.rss_mb * share,
            }
            reply.content["load"] = ConfigRecord(load | {"node_cpu": cpu, "node_mem": mem})
        return replies

    def notes(self) -> list[str]:
        """Return the lines written since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def _train(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> tuple[list[Message], list[float]] | None:
        if self._has_mods:
            raise UnsupportedError("Flower mods see one client at a time")
        client, config = self._client, _common_config(messages)
        if "method" in config:
            return None
        hp, clients = LocalTraining.from_config(config), [partition_id(context) for context in contexts]
        places = client.pool.places(dict(client.train_set(config, c) for c in clients))
        start = self._start(messages, contexts, config)
        seeds = [client.train_seed(config, c) for c in clients]

        def together(lo: int = 0, hi: int = len(clients)) -> tuple[list[Tensor], list[dict[str, float]]]:
            own = start if start.ndim == 1 else start[lo:hi]
            x, y = client.pool.x, client.pool.y
            return train_many(self._program, own, x, y, places[lo:hi], hp, seeds[lo:hi])

        def alone() -> None:
            model = client.load(own_or_sent(messages[0], contexts[0], config))
            first, count = places[0]
            rows = slice(first, first + count)
            train(model, client.pool.x[rows], client.pool.y[rows], hp, seeds[0])

        key = (client.spec.name, str(client.spec.kwargs), client.pool.x.shape[1:], hp.batch_size, hp.optimizer,
               min(len(clients), 16), str(client.device), client.threads)  # fmt: skip
        if self._engine == "auto" and not self._keeps(key, together, alone, places):
            return None
        records, results = [], []
        for part_records, part_results in _halving(together, len(clients), self._record, self._say):
            records += part_records
            results += part_results
        replies = []
        for message, context, record, result, (_, count) in zip(
            messages, contexts, records, results, places, strict=True
        ):
            keeps = bool(config.get("keep-local"))
            if keeps:
                context.state["model"] = record
            replies.append(make_reply(message, train_metrics(result, count), None if keeps else record))
        counts = [count for _, count in places]
        seen = [hp.steps * min(hp.batch_size or n, n) if hp.steps else hp.epochs * n for n in counts]
        return replies, [n / sum(seen) for n in seen]

    def _evaluate(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> tuple[list[Message], list[float]] | None:
        client, config = self._client, _common_config(messages)
        if "method" in config:
            return None
        places = client.pool.places(dict(client.evaluation_set(config, partition_id(context)) for context in contexts))
        x, y = client.pool.x, client.pool.y
        labels = [y[first : first + count] for first, count in places]
        models = [own_or_sent(message, context, config) for message, context in zip(messages, contexts, strict=True)]
        if _all_same(models):  # one model on everybody's examples
            images = torch.cat([x[first : first + count] for first, count in places])
            logits = list(predict(client.load(models[0]), images).split([count for _, count in places]))
        else:
            logits = predict_many(self._program, self._start(messages, contexts, config), x, places)
        losses = F.cross_entropy(torch.cat(logits).double(), torch.cat(labels), reduction="none")
        correct = torch.cat(logits).argmax(1) == torch.cat(labels)
        counts = [count for _, count in places]
        replies = []
        for message, n, loss, hits in zip(messages, counts, losses.split(counts), correct.split(counts), strict=True):
            metrics = {"num-examples": n, "eval_loss": float(loss.sum()) / n, "eval_acc": int(hits.sum()) / n}
            replies.append(make_reply(message, metrics))
        return replies, [n / sum(counts) for n in counts]

    @cached_property
    def _program(self) -> Program:
        return Program(self._client.model, self._client.pool.x.shape[1:])

    def _start(self, messages: Sequence[Message], contexts: Sequence[Context], config: Mapping[str, Any]) -> Tensor:
        """Return the weights that the clients start from: (P,) where they all have the same, else (C, P)."""
        torch.set_num_threads(self._client.threads)
        records = [own_or_sent(message, context, config) for message, context in zip(messages, contexts, strict=True)]
        if _all_same(records):
            records = records[:1]
        rows = []
        for record in records:
            if {name: tuple(array.shape) for name, array in record.items()} != self._program.shapes:
                load_weights(self._client.model, record)  # says what is wrong; or only the order of the names is
            rows.append(np.concatenate([read_array(record[name]).ravel() for name in self._program.shapes]))
        values = torch.from_numpy(np.stack(rows)).to(self._client.pool.x)
        return values[0] if len(records) == 1 else values

    def _record(self, row: Tensor) -> ArrayRecord:
        """Return a client's flat weights (P,) as the record that the model itself would give."""
        values, record, first = row.cpu().numpy(), ArrayRecord(), 0
        for name, shape in self._program.shapes.items():
            record[name] = write_array(values[first : first + prod(shape)].reshape(shape))
            first += prod(shape)
        return record

    def _keeps(
        self, key: Hashable, together: Callable[[], Any], alone: Callable[[], Any], places: Sequence[tuple[int, int]]
    ) -> bool:
        """Return what ``auto`` uses for such chunks: measured the first time, the second of two runs of each."""
        if key not in _faster:
            total, first = sum(count for _, count in places), places[0][1]
            batched, single = _seconds(together, self._client.device), _seconds(alone, self._client.device)
            batched, single = batched / total, single / first
            _faster[key] = batched < single
            self._say(
                f"training.engine=auto: {'vectorized' if _faster[key] else 'sequential'} for "
                f"{self._client.spec.name} in chunks of {len(places)} on {self._client.device}: {batched * 1e6:.0f} us "
                f"an example against {single * 1e6:.0f}; set training.engine to it for a run that repeats to the bit"
            )
        return _faster[key]

    def _say(self, note: str) -> None:
        """Note a line, unless the same was noted before."""
        kind = note.split(": ")[0] if "auto" in note else note
        if kind not in self._said:
            self._said.add(kind)
            self._notes.append(" ".join(note.split()))


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


def _all_same(records: Sequence[ArrayRecord]) -> bool:
    """Return whether records hold the same arrays: the very same, as the copies of one message do."""
    first = records[0]
    return all(
        record.keys() == first.keys() and all(record[name] is first[name] for name in first) for record in records[1:]
    )


def _halving(
    together: Callable[[int, int], tuple[list[Tensor], list[dict[str, float]]]],
    count: int,
    record: Callable[[Tensor], ArrayRecord],
    say: Callable[[str], None],
) -> list[tuple[list[ArrayRecord], list[dict[str, float]]]]:
    """Train clients 0 to count; where the memory does not suffice, in halves, and halves of halves."""
    done, size, first = [], count, 0
    while first < count:
        try:
            rows, results = together(first, min(first + size, count))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size = (size + 1) // 2
            say(f"the device's memory does not suffice for a chunk of {count} clients; {size} go together")
            continue
        # The rows are the program's memory: they are copied before it trains the next half.
        done.append(([record(row) for row in rows], results))
        first += size
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
