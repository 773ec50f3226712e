"""What the built-in client reads from Flower's messages, and how it answers."""

from collections.abc import Mapping

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Context,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)
from torch import Tensor

from fedsweep.training.local import confusion, score

Metrics = dict[str, MetricRecordValues]
"""The numbers of a reply, by name."""


def message_config(message: Message) -> ConfigRecord:
    """Return the configuration that a message carries; empty where there is none."""
    return message.content.config_records.get("config", ConfigRecord())


def make_reply(message: Message, metrics: Metrics, arrays: ArrayRecord | None = None) -> Message:
    """Return the reply with these metrics and, where given, arrays."""
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)


def train_metrics(result: Mapping[str, float], num_examples: int) -> Metrics:
    """Return the metrics of a training reply."""
    return {
        "num-examples": num_examples,
        "train_loss": result["loss"],
        "train_acc": result["accuracy"],
        "steps": int(result["steps"]),
    }


def eval_metrics(num_examples: int, loss_sum: float, correct: float) -> Metrics:
    """Return the metrics of an evaluation reply;
    of no examples, zeros, which no mean by examples counts.
    """
    n = max(num_examples, 1)
    return {"num-examples": num_examples, "eval_loss": loss_sum / n, "eval_acc": correct / n}


def class_record(counts: np.ndarray) -> ConfigRecord:
    """Return predictions by class (3, classes) as a reply tells them: the bytes of int64 rows."""
    return ConfigRecord({"counts": counts.astype("<i8").tobytes()})


class TestSums:
    """A model's scores on a test set, slice by slice, as a reply tells them."""

    __test__ = False  # its name is no test's

    def __init__(self, classes: int) -> None:
        self._count, self._loss, self._correct = 0, 0.0, 0
        self._confusion = np.zeros((classes, classes), np.int64)

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Take in the logits (n, classes) and the labels (n,) of a slice."""
        result = score(logits, y)
        self._count += len(y)
        self._loss += result["loss_sum"]
        self._correct += int(result["correct"])
        self._confusion += confusion(logits, y)

    def record(self) -> ConfigRecord:
        """Return num-examples, loss_sum, correct and confusion: int64, the bytes of its rows."""
        matrix = self._confusion.astype("<i8").tobytes()
        sums: dict[str, ConfigRecordValues] = {"loss_sum": self._loss, "correct": self._correct}
        return ConfigRecord({"num-examples": self._count, **sums, "confusion": matrix})


def partition_id(context: Context) -> int:
    """Return which client a context is."""
    return int(context.node_config["partition-id"])
