"""Networks by name, fitted to a data set's images and classes.

A network is a file with one function ``(input_shape, num_classes, **options) -> nn.Module``; adding one is that file
and a line in ``MODELS``. Inputs are normalised float images (N, C, H, W), outputs are logits (N, classes). Layers come
in the order of the forward pass, so the last parameters are the classifier's.
"""

import importlib
import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, get_type_hints

import torch
from torch import nn

from fedsweep.models.cnn import cnn
from fedsweep.models.lenet import lenet
from fedsweep.models.linear import logreg
from fedsweep.models.mlp import mlp
from fedsweep.models.resnet import resnet18
from fedsweep.models.simple_cnn import simple_cnn

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
        A key of ``MODELS``, or the dotted path of a subclass of ``nn.Module`` or of a function that
        says it returns one (``-> nn.Module``). Anything else is refused without being called.
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
        raise ValueError(
            f"model '{name}' can't be built with {arguments}: {_first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model '{name}' gives a {type(model).__name__}, not a torch.nn.Module; name a module class"
        )
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
        raise ValueError(
            f"model '{name}' takes {', '.join(twice)} from the data set; leave it out of model.kwargs"
        )
    signature = inspect.signature(factory)
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
        raise ValueError(
            f"model '{path}' can't be imported: {error}; give package.module.Class"
        ) from error
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    if inspect.isfunction(found) and _returns_module(found):
        return found
    what = "class" if isinstance(found, type) else type(found).__name__
    raise ValueError(
        f"model '{path}' is a {what}, not a torch.nn.Module class, nor a function that says it returns "
        "one; write its def with '-> torch.nn.Module'"
    )


def _returns_module(function: Callable[..., Any]) -> bool:
    """Return whether a Python function is annotated with a subclass of nn.Module as its result.

    What a dotted path names comes from a command line or a file, and anything that can be imported
    has one: ``os.system``, ``subprocess.run``. A function is called only if its author has written
    that it makes networks; calling it first, to see what comes out, would be too late.
    """
    try:
        result = get_type_hints(function).get("return")
    except Exception:  # a name in an annotation that is there for type checkers alone
        result = None
    return isinstance(result, type) and issubclass(result, nn.Module)


def _probe(model: nn.Module, name: str, input_shape: Shape, num_classes: int) -> None:
    """Run one blank image through the network: what does not fit is refused here, not in the middle of a sweep."""
    shape = "x".join(map(str, input_shape))
    model.eval()  # no dropout draw, no update of running statistics
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, *input_shape))
    except Exception as error:
        raise ValueError(
            f"model '{name}' can't take images of shape {shape}: {_first_line(error)}"
        ) from error
    model.train()
    actual = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if actual != (1, num_classes):
        raise ValueError(
            f"model '{name}' gives {actual} for one image of shape {shape}, but the data set needs (1, {num_classes})"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
