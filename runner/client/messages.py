"""What the built-in client reads from Flower's messages, and how it answers."""

from collections.abc import Mapping
from math import isnan

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

from fedsweep.predictions import is_counts
from fedsweep.training.local import score
from fedsweep.training.targets import empty_table, full_table_of, in_unit

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
    """Return the metrics of a training reply; numbers that are learnt have no accuracy."""
    told: Metrics = {"num-examples": num_examples, "train_loss": result["loss"]}
    if not isnan(result["accuracy"]):
        told["train_acc"] = result["accuracy"]
    return told | {"steps": int(result["steps"])}


def eval_metrics(num_examples: int, loss_sum: float, correct: float) -> Metrics:
    """Return the metrics of an evaluation reply;
    of no examples, zeros, which no mean by examples counts. What is nan does not exist.
    """
    n = max(num_examples, 1)
    told: Metrics = {"num-examples": num_examples, "eval_loss": loss_sum / n}
    return told if isnan(correct) else told | {"eval_acc": correct / n}


def table_record(table: np.ndarray) -> ConfigRecord:
    """Return a table of predictions, of classes or of numbers, as a reply has it.

    ``counts`` are the bytes of int64 numbers, ``sums`` those of float64.
    """
    return ConfigRecord(table_values(table, "counts"))


def table_values(table: np.ndarray, counts: str) -> dict[str, ConfigRecordValues]:
    """Return the bytes of a table under the name that its kind has."""
    if is_counts(table):
        return {counts: table.astype("<i8").tobytes()}
    return {"sums": table.astype("<f8").tobytes()}


class TestSums:
    """A model's scores on a test set, slice by slice, as a reply tells them."""

    __test__ = False  # its name is no test's

    def __init__(self, outputs: int, *, real: bool = False, unit: float = 1.0) -> None:
        self._count, self._loss, self._correct = 0, 0.0, 0.0 if real else 0
        self._table, self._unit = empty_table(outputs, real=real), unit

    def add(self, logits: Tensor, y: Tensor) -> None:
        """Take in the outputs (n, outputs) and the targets (n,) of a slice."""
        result = score(logits, y)
        self._count += len(y)
        self._loss += result["loss_sum"]
        self._correct += result["correct"]
        self._table += in_unit(full_table_of(logits, y), self._unit)

    def record(self) -> ConfigRecord:
        """Return num-examples, loss_sum, correct and the table: confusion, or sums of numbers."""
        sums: dict[str, ConfigRecordValues] = {"loss_sum": self._loss, "correct": self._correct}
        table = table_values(self._table, "confusion")
        return ConfigRecord({"num-examples": self._count, **sums, **table})


def partition_id(context: Context) -> int:
    """Return which client a context is."""
    return int(context.node_config["partition-id"])
