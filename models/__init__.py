"""Networks by name, fitted to a data set's images and classes.

A network is a file with one function ``(input_shape, num_classes, **options) -> nn.Module``; adding one is that file
and a line in ``MODELS``. Inputs are normalised float images (N, C, H, W), outputs are logits (N, classes). Layers come
in the order of the forward pass, so the last parameters are the classifier's.
"""

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from models.cnn import cnn
from models.lenet import lenet
from models.linear import logreg
from models.mlp import mlp
from models.resnet import resnet18
from models.simple_cnn import simple_cnn

Shape = tuple[int, int, int]

MODELS: dict[str, Callable[..., nn.Module]] = {
    "logreg": logreg,
    "mlp": mlp,
    "lenet": lenet,
    "cnn": cnn,
    "simple_cnn": simple_cnn,
    "resnet18": resnet18,
}


def build_model(name: str, input_shape: Shape, num_classes: int, /, **kwargs: Any) -> nn.Module:
    """Build a network and check that it maps the data set's images to its classes.

    Parameters
    ----------
    name : str
        A key of ``MODELS``, or the dotted path of a class or function that returns an ``nn.Module``.
    input_shape : tuple[int, int, int]
        Channels, height and width of an image.
    num_classes : int
        Number of classes, the length of the output per image.
    kwargs : Any
        Options of the network. A dotted path is called with these and nothing else.

    Returns
    -------
    nn.Module
        The network on the CPU, initialised from torch's global generator.

    Raises
    ------
    ValueError
        The name is unknown, the options do not fit, or the network can't take such images or gives another output.
    """
    factory, arguments = _find(name, kwargs, input_shape, num_classes)
    try:
        model = factory(**arguments)
    except Exception as error:
        raise ValueError(f"model '{name}' can't be built with {arguments}: {_first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"model '{name}' gives a {type(model).__name__}, not a torch.nn.Module; name a module class")
    _probe(model, name, input_shape, num_classes)
    return model


def _find(
    name: str, kwargs: dict[str, Any], input_shape: Shape, num_classes: int
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Return what builds the network and all its arguments, once they are known to fit its signature."""
    if name in MODELS:
        factory: Callable[..., Any] = MODELS[name]
        given = {"input_shape": input_shape, "num_classes": num_classes}
    elif "." in name:
        factory, given = _import(name), {}
    else:
        near = get_close_matches(name, MODELS, n=1, cutoff=0.5)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(
            f"unknown model '{name}'.{hint} Valid: {', '.join(sorted(MODELS))}, or a torch.nn.Module's dotted path."
        )
    if twice := sorted(given.keys() & kwargs.keys()):
        raise ValueError(f"model '{name}' takes {', '.join(twice)} from the data set; leave it out of model.kwargs")
    try:
        signature = inspect.signature(factory)
    except ValueError as error:  # some built-in types have none; no network is one of them
        raise ValueError(f"model '{name}' is not a torch.nn.Module class, nor a function that returns one") from error
    try:
        signature.bind(**given, **kwargs)
    except TypeError as error:
        options = [key for key in signature.parameters if key not in given]
        raise ValueError(
            f"model '{name}' does not take model.kwargs={kwargs}: {error}. It takes: {', '.join(options) or 'none'}."
        ) from error
    return factory, {**given, **kwargs}


def _import(path: str) -> Callable[..., Any]:
    """Return the callable at a dotted path."""
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model '{path}' can't be imported: {error}; give package.module.Class") from error
    if not callable(found):
        raise ValueError(f"model '{path}' is a {type(found).__name__}, not a torch.nn.Module class")
    return found  # type: ignore[no-any-return]


def _probe(model: nn.Module, name: str, input_shape: Shape, num_classes: int) -> None:
    """Run one blank image through the network: what does not fit is refused here, not in the middle of a sweep."""
    shape = "x".join(map(str, input_shape))
    model.eval()  # no dropout draw, no update of running statistics
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, *input_shape))
    except Exception as error:
        raise ValueError(f"model '{name}' can't take images of shape {shape}: {_first_line(error)}") from error
    model.train()
    actual = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if actual != (1, num_classes):
        raise ValueError(
            f"model '{name}' gives {actual} for one image of shape {shape}, but the data set needs (1, {num_classes})"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
