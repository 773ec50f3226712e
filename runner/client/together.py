"""A chunk of messages run in one batched program, in place of one client after the other.

``training.engine`` decides: ``sequential`` never does, ``vectorized`` does wherever it can. What
can't be run together goes to the Flower ClientApp message by message, and a note says why, once.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import Literal, cast

import torch
from flwr.app import ConfigRecord, ConfigRecordValues, Context, Message, RecordDict

from fedsweep.client.messages import message_config
from fedsweep.client.process import ClientProcess
from fedsweep.client.work import evaluate_chunk, losses_of_chunk, train_chunk
from fedsweep.engine.flower import Mod
from fedsweep.engine.load import TaskMeter, node_load
from fedsweep.strategies.clients import Values, training_effort
from fedsweep.training.batched import Program
from fedsweep.training.layers import UnsupportedError
from fedsweep.training.local import LocalTraining
from fedsweep.training.trainers import Batched

TrainingEngine = Literal["sequential", "vectorized"]
Replies = list[tuple[Message, float]]
"""Each message's reply, and its share of the work in any unit."""


class ChunkRunner:
    """Runs chunks for one trial's ClientApp.

    Parameters
    ----------
    client : ClientProcess
        What a process holds: model, examples, device.
    engine : "sequential" | "vectorized"
        ``training.engine``.
    mods : sequence of Mod
        Flower mods around training, the outermost first: each is given its own client's reply.
    """

    def __init__(
        self, client: ClientProcess, engine: TrainingEngine, mods: Sequence[Mod] = ()
    ) -> None:
        self._client, self._engine, self._mods = client, engine, mods
        self._said: set[str] = set()
        self._notes: list[str] = []

    def run(self, messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message] | None:
        """Return one reply a message, with its client's share of the chunk's load;
        None: run them one by one.
        """
        kinds = {message.metadata.message_type for message in messages}
        work = {"train": self._train, "evaluate": self._evaluate, "query.losses": self._losses}.get(
            next(iter(kinds))
        )
        if self._engine == "sequential" or len(kinds) > 1 or work is None:
            return None
        before = [RecordDict(dict(context.state)) for context in contexts]
        try:
            with TaskMeter() as meter:
                check_common_config(messages)
                done = _halving(work, messages, contexts, self._say)
        except Exception as error:
            # One client's fault must not be its neighbours': alone, each has its own reply.
            why = f"a chunk runs client by client after {type(error).__name__}: {error}"
            if isinstance(error, UnsupportedError):
                why = f"training.engine={self._engine}: clients are trained one by one: {error}"
            self._say(why)
            for context, state in zip(contexts, before, strict=True):
                context.state = state
            return None
        cpu, mem = node_load()
        total = sum(cost for _, cost in done)
        for reply, cost in done:
            if reply.has_content():
                share = cost / total
                load: dict[str, ConfigRecordValues] = {
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

    def _train(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
        replies = train_chunk(self._client, self._trainer, messages, contexts)
        pairs = zip(messages, contexts, replies, strict=True)
        through = [self._through_mods(*pair) for pair in pairs]
        config = message_config(messages[0])
        seen = [training_effort(config, _num_examples(reply)) for reply in replies]
        return list(zip(through, seen, strict=True))

    def _evaluate(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
        replies, seen = evaluate_chunk(self._client, self._trainer, messages, contexts)
        return list(zip(replies, seen, strict=True))

    def _losses(self, messages: Sequence[Message], contexts: Sequence[Context]) -> Replies:
        replies = losses_of_chunk(self._client, self._trainer, messages, contexts)
        return [(reply, _num_examples(reply)) for reply in replies]

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
    def _trainer(self) -> Batched:
        client = self._client
        program = partial(Program, client.model, client.input_shape, client.device)
        return Batched(program, client.one_by_one)

    def _say(self, note: str) -> None:
        """Note a line, unless the same was noted before."""
        if note not in self._said:
            self._said.add(note)
            self._notes.append(" ".join(note.split()))


def _num_examples(reply: Message) -> int:
    return int(cast(int, reply.content.metric_records["metrics"]["num-examples"]))


def _call_mod(
    mod: Mod, call: Callable[[Message, Context], Message], message: Message, context: Context
) -> Message:
    return mod(message, context, call)


def check_common_config(messages: Sequence[Message]) -> None:
    """Refuse messages whose configurations differ, but for the round that they were asked in.

    Raises
    ------
    UnsupportedError
        They do.
    """
    first, *others = map(_but_for_its_round, messages)
    if any(other != first for other in others):
        raise UnsupportedError("the clients of a chunk have different hyperparameters")


def _but_for_its_round(message: Message) -> tuple[Values, LocalTraining]:
    """Return what a message asks; the learning rate is that of its round."""
    config = message_config(message)
    told = {key: value for key, value in config.items() if key != "server-round"}
    return told, LocalTraining.from_config(config)


def _halving(
    work: Callable[[Sequence[Message], Sequence[Context]], Replies],
    messages: Sequence[Message],
    contexts: Sequence[Context],
    say: Callable[[str], None],
) -> Replies:
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
            say(
                f"the device's memory does not suffice for a chunk of {len(messages)} clients; "
                f"{size} go together"
            )
            continue
        done += replies
    return done
