"""How much of its work a client is asked to do."""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Message, RecordDict

from fedsweep.pace.clock import DeviceClock
from fedsweep.pace.policies import Workload


@dataclass(frozen=True)
class StepsThatFit(Workload):
    """A slow client takes as many steps as fit before a deadline, at least one.

    Parameters
    ----------
    seconds : float
        Virtual, from asking a client to its reply.
    """

    clock: DeviceClock
    seconds: float

    def asked(self, messages: Sequence[Message], version: int) -> Sequence[Message]:
        """Return the messages, of slow clients with fewer steps; what is shared stays shared."""
        del version
        contents: dict[tuple[int, int], RecordDict] = {}
        found = []
        for message in messages:
            if self.clock.parts(message).seconds <= self.seconds:
                found.append(message)
                continue
            steps = self._fitting(message)
            key = id(message.content), steps
            if key not in contents:
                contents[key] = _with_steps(message.content, steps)
            found.append(_readdressed(message, contents[key]))
        return found

    def _fitting(self, message: Message) -> int:
        """Return the most steps that fit; 1 where not even one does."""
        whole = max(self.clock.steps(message), 1)
        low, high = 1, whole  # time grows with the steps: those that fit are found by halving
        while low < high:
            steps = (low + high + 1) // 2
            tried = _readdressed(message, _with_steps(message.content, steps))
            fits = self.clock.parts(tried).seconds <= self.seconds
            low, high = (steps, high) if fits else (low, steps - 1)
        return low


def _with_steps(content: RecordDict, steps: int) -> RecordDict:
    config = content.config_records.get("config", ConfigRecord())
    return RecordDict({**content, "config": ConfigRecord({**config, "steps": steps})})


def _readdressed(message: Message, content: RecordDict) -> Message:
    told = message.metadata
    return Message(content, told.dst_node_id, told.message_type)
