"""What the built-in client reads from Flower's messages, and how it answers."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict


def message_config(message: Message) -> ConfigRecord:
    """Return the configuration that a message carries; empty where there is none."""
    return message.content.config_records.get("config", ConfigRecord())


def make_reply(message: Message, metrics: dict[str, Any], arrays: ArrayRecord | None = None) -> Message:
    """Return the reply with these metrics and, where given, arrays."""
    content = RecordDict({"metrics": MetricRecord(metrics)})
    if arrays is not None:
        content["arrays"] = arrays
    return Message(content, reply_to=message)


def train_metrics(result: Mapping[str, float], num_examples: int) -> dict[str, Any]:
    """Return the metrics of a training reply."""
    return {
        "num-examples": num_examples,
        "train_loss": result["loss"],
        "train_acc": result["accuracy"],
        "steps": int(result["steps"]),
    }


def partition_id(context: Context) -> int:
    """Return which client a context is."""
    return int(context.node_config["partition-id"])


def own_or_sent(message: Message, context: Context, config: Mapping[str, Any]) -> ArrayRecord:
    """Return the client's own model where it keeps one, else the arrays it was sent."""
    if config.get("keep-local") and "model" in context.state:
        return context.state.array_records["model"]
    return message.content.array_records["arrays"]
