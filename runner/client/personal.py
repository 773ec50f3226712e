"""Clients with a model of their own beside the global one, or with a memory of their own drift.

Sources: Li et al. 2021 (Ditto, arXiv:2012.04221), Deng et al. 2020 (APFL, arXiv:2003.13461), Arivazhagan et al. 2019
(FedPer, arXiv:1912.00818), Cheng et al. 2021 (fine-tuning, arXiv:2108.07313), Karimireddy et al. 2020 (SCAFFOLD,
arXiv:1910.06378).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from torch import Tensor, nn

from runner.arrays import read_array, write_array
from runner.client.arrays import read_weights
from runner.client.methods import Done, Work
from runner.client.mixture import train_mixture
from runner.client.training import train


def ditto(work: Work) -> Done:
    """Train the global model; then the personal one v, pulled to the global model as it was sent.

    v <- v - lr (grad F(v) + lambda (v - w)), Ditto's algorithm 1; v begins as the first model received.
    """
    sent = work.arrays["arrays"]
    model = work.load(sent)
    anchor = _trained(model)
    result = train(model, work.x, work.y, work.hp, work.seed)
    update = read_weights(model)
    hp = replace(work.hp, proximal_mu=float(work.config["lambda"]))
    if epochs := int(work.config.get("personal-epochs", 0)):
        hp = replace(hp, epochs=epochs, steps=0)
    work.load(_own(work, "ditto", sent))
    personal = train(model, work.x, work.y, hp, work.seed, anchor=anchor)
    work.state["ditto"] = read_weights(model)
    return Done(result, update, {"personal_loss": personal["loss"]})


def ditto_model(work: Work) -> nn.Module:
    """Return the personal model; a client that never trained has the global one."""
    return work.load(_own(work, "ditto", work.arrays["arrays"]))


def apfl(work: Work) -> Done:
    """Train the global model w and the local v, which is used as alpha v + (1 - alpha) w (APFL, algorithm 1)."""
    sent = work.arrays["arrays"]
    local = _state_dict(_own(work, "apfl", sent), work.load(sent))
    alpha = _alpha(work)
    result, v, alpha = train_mixture(
        work.model, local, work.x, work.y, work.hp, work.seed, alpha, adaptive=bool(work.config.get("adaptive"))
    )
    work.state["apfl"] = _record(v)
    work.state["apfl-alpha"] = MetricRecord({"alpha": alpha})
    metrics = {"personal_loss": result.pop("personal_loss"), "alpha": alpha}
    return Done(result, read_weights(work.model), metrics)


def apfl_model(work: Work) -> nn.Module:
    """Return the mixture of the client's v with the global model as it was sent."""
    sent = work.arrays["arrays"]
    own, alpha = _own(work, "apfl", sent), _alpha(work)
    mixed = ArrayRecord(dict(own))  # running statistics are those that the client's own model was trained with
    for key in work.layout.trained:
        v, w = read_array(own[key]), read_array(sent[key])
        mixed[key] = write_array(np.asarray((alpha * v + (1 - alpha) * w).astype(w.dtype)))
    return work.load(mixed)


def fedper(work: Work) -> Done:
    """Train base and head together; keep the head, send the base (FedPer, algorithms 1 and 2)."""
    model = fedper_model(work)
    result = train(model, work.x, work.y, work.hp, work.seed)
    head = set(work.config["head"])
    trained = read_weights(model)
    work.state["fedper"] = ArrayRecord({key: array for key, array in trained.items() if key in head})
    return Done(result, ArrayRecord({key: array for key, array in trained.items() if key not in head}))


def fedper_model(work: Work) -> nn.Module:
    """Return the base that was sent under the client's own head; the initial model's until the client has trained."""
    head = work.state.array_records["fedper"] if "fedper" in work.state else work.initial()
    base = work.arrays["arrays"]
    return work.load(ArrayRecord({key: base.get(key, head.get(key)) for key in work.model.state_dict()}))


def finetuned(work: Work) -> nn.Module:
    """Return the global model after some epochs on the client's training examples; nothing of it is kept."""
    model = work.load(work.arrays["arrays"])
    hp = replace(work.hp, epochs=int(work.config["finetune-epochs"]), steps=0)
    train(model, work.x, work.y, hp, work.seed)
    return model


def scaffold(work: Work) -> Done:
    """Train with gradients corrected by c - c_i, then renew c_i (SCAFFOLD, option II)."""
    if work.hp.optimizer != "sgd":
        raise ValueError(f"SCAFFOLD's correction needs training.optimizer=sgd, not {work.hp.optimizer}; change it")
    model = work.load(work.arrays["arrays"])
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    start = _trained(model)
    c = _tensors(work.arrays["control"], names, start)
    own = _tensors(work.state.array_records["scaffold"], names, start) if "scaffold" in work.state else None
    c_i = own or [torch.zeros_like(p) for p in start]
    offset = [a - b for a, b in zip(c, c_i, strict=True)]
    result = train(model, work.x, work.y, work.hp, work.seed, offset=offset)
    weight = gradient_weight(work.hp.lr, work.hp.momentum, int(result["steps"]))
    new, change = ArrayRecord(), ArrayRecord()
    for name, x_0, y, o, before in zip(names, start, _trained(model), offset, c_i, strict=True):
        after = renewed(x_0, y, o, weight)
        new[name] = write_array(after.cpu().numpy())
        change[name] = write_array((after - before).cpu().numpy())
    work.state["scaffold"] = new
    return Done(result, read_weights(model), records={"control": change})


def gradient_weight(lr: float, momentum: float, steps: int) -> float:
    """Return the total weight with which the gradients of K steps enter x - y.

    It is K lr without momentum, and lr sum_{t=1..K} (1 - b^t) / (1 - b) with momentum b.
    """
    return lr * sum((1 - momentum**t) / (1 - momentum) for t in range(1, steps + 1))


def renewed(x: Any, y: Any, offset: Any, weight: float) -> Any:
    """Return c_i+ = c_i - c + (x - y) / weight, arrays or tensors; ``offset`` is c - c_i.

    y moved by the corrected gradients, g + c - c_i, so this is the mean of g alone.
    """
    return (x - y) / weight - offset


def _own(work: Work, name: str, sent: ArrayRecord) -> ArrayRecord:
    return work.state.array_records[name] if name in work.state else sent


def _alpha(work: Work) -> float:
    if "apfl-alpha" in work.state:
        return float(work.state.metric_records["apfl-alpha"]["alpha"])  # type: ignore[arg-type]
    return float(work.config["alpha"])


def _trained(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters() if p.requires_grad]


def _tensors(arrays: ArrayRecord, names: list[str], like: list[Tensor]) -> list[Tensor]:
    return [
        torch.from_numpy(np.array(read_array(arrays[name]))).to(tensor)
        for name, tensor in zip(names, like, strict=True)
    ]


def _state_dict(arrays: ArrayRecord, model: nn.Module) -> dict[str, Tensor]:
    return {
        key: torch.from_numpy(np.array(read_array(arrays[key]))).to(value) for key, value in model.state_dict().items()
    }


def _record(tensors: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({key: write_array(value.detach().cpu().numpy()) for key, value in tensors.items()})
