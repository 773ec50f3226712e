"""Networks by name, fitted to a data set's examples and targets.

A network is a file with one function, called as the file is: ``(input_shape, num_classes,
**options) -> nn.Module``. One of somebody's own may also be a class of modules. Inputs are
normalised float images (N, C, H, W), features (N, F), series (N, T, C), or symbols int64 (N, T), of
which a network is told how many there are (``num_symbols``). Outputs are logits (N, classes), or
numbers (N, 1). Layers come in the order of
the forward pass, so the last parameters are the classifier's.

What networks there are is known without torch, which takes seconds to import.
"""

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from fedsweep.parts.registry import Origin, Registry

if TYPE_CHECKING:
    from torch import nn

Shape = tuple[int, ...]
_OF_DATA = ("input_shape", "num_classes", "num_symbols")
"""What a network is told of its data set, where its signature has it."""


@dataclass(frozen=True)
class _BuiltIn:
    """A network of this package, not imported yet."""

    name: str


class Networks(Registry[Any]):
    """Networks by name: functions or classes, imported when one is built."""

    def __init__(self) -> None:
        super().__init__("model", str(__package__), "fedsweep.models")

    def is_part(self, value: object) -> bool:
        """Return whether it is a class of modules, or a function that says it returns one."""
        if "torch.nn" not in sys.modules:  # then nobody has made one
            return False
        from torch import nn

        if isinstance(value, type):
            return issubclass(value, nn.Module)
        return inspect.isfunction(value) and _returns_module(value)

    def expected(self) -> str:
        """Say what a network is."""
        return "a torch.nn.Module class, or a function with '-> torch.nn.Module' in its def"

    def factory(self, name: str) -> Callable[..., "nn.Module"]:
        """Return the function or class that makes a network."""
        found: Any = self[name]
        if isinstance(found, Origin):
            self._add_new(found.code, found.attribute)
            found = self[name]
        if isinstance(found, _BuiltIn):
            found = getattr(importlib.import_module(f"{__package__}.{name}"), name)
        made: Callable[..., nn.Module] = found
        return made

    def takes(self, name: str) -> list[str] | None:
        """Return the options that a network takes; None where it takes any, or is a dotted path.

        Those of this package are read from their files: importing them would import torch.
        """
        found: Any = self.get(name)
        if isinstance(found, _BuiltIn):
            return [option for option in _written(name) if option not in _OF_DATA]
        if found is None or isinstance(found, Origin):
            return None
        parameters = inspect.signature(found).parameters
        if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
            return None
        return [option for option in parameters if option not in _OF_DATA]

    def find(self, given: str) -> str:
        """Return the name of a network: also a dotted path, which stays as it is.

        Raises
        ------
        ValueError
            There is no such network: what is there.
        """
        dotted = "." in given and ":" not in given and not given.endswith(".py")
        return given if dotted else super().find(given)

    def receive(self, origin: Origin) -> None:
        """Know a network that another process knows; it is imported when it is built."""
        self._parts()
        self._add(origin.name, origin)
        self._origins[origin.name] = origin

    def _read_package(self) -> None:
        for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
            self._add(path.stem, _BuiltIn(path.stem))


MODELS = Networks()


def build_model(
    name: str, input_shape: Shape, num_classes: int, num_symbols: int = 0, /, **kwargs: Any
) -> "nn.Module":
    """Build a network and check that it maps the data set's examples to its classes.

    Parameters
    ----------
    name : str
        A key of ``MODELS``, a reference to a file (``./mine.py:Net``), or the dotted path of a
        subclass of ``nn.Module`` or of a function that says it returns one (``-> nn.Module``).
        Anything else is refused without being called.
    input_shape : tuple of int
        Of an example: channels, height and width of an image.
    num_classes : int
        Number of classes, the length of the output per example; 1 where a number is learnt.
    num_symbols : int
        Symbols that examples are written in; 0 where they are numbers.
    kwargs : Any
        Options of the network. One of somebody's own gets ``input_shape``, ``num_classes`` and
        ``num_symbols`` where its signature has them.

    Returns
    -------
    nn.Module
        The network on the CPU, initialised from torch's global generator.

    Raises
    ------
    ValueError
        The name is unknown, the options do not fit, nothing of the network is trained, or it can't
        take such inputs or gives another output.
    """
    from torch import nn

    told = dict(zip(_OF_DATA, (input_shape, num_classes, num_symbols), strict=True))
    factory, arguments = _find(name, kwargs, told)
    try:
        model = factory(**arguments)
    except Exception as error:
        raise ValueError(
            f"model '{name}' can't be built with {arguments}: {_first_line(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model '{name}' gives a {type(model).__name__}, not a torch.nn.Module; name a module "
            "class"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"model '{name}' has no parameter that is trained (requires_grad); name another one"
        )
    _probe(model, name, told)
    return model


def _find(
    name: str, kwargs: dict[str, Any], told: dict[str, Any]
) -> tuple[Callable[..., "nn.Module"], dict[str, Any]]:
    """Return what builds the network and all its arguments, once they are known to fit."""
    name = MODELS.find(name)
    factory = MODELS.factory(name) if name in MODELS else _import(name)
    signature = inspect.signature(factory)
    symbols = signature.parameters.get("num_symbols")
    if symbols is not None and symbols.default is symbols.empty and not told["num_symbols"]:
        raise ValueError(
            f"model '{name}' reads symbols, and the data set has numbers; set model to another one"
        )
    given = {key: value for key, value in told.items() if key in signature.parameters}
    if twice := sorted(given.keys() & kwargs.keys()):
        raise ValueError(
            f"model '{name}' takes {', '.join(twice)} from the data set; leave it out of "
            "model.kwargs"
        )
    try:
        signature.bind(**given, **kwargs)
    except TypeError as error:
        options = [key for key in signature.parameters if key not in given]
        raise ValueError(
            f"model '{name}' does not take model.kwargs={kwargs}: {error}. It takes: "
            f"{', '.join(options) or 'none'}."
        ) from error
    return factory, {**given, **kwargs}


@cache
def _written(name: str) -> tuple[str, ...]:
    """Return the parameters of a network of this package, as its file has them."""
    tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8"))
    made = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name)
    return tuple(arg.arg for arg in (*made.args.args, *made.args.kwonlyargs))


def _import(path: str) -> Callable[..., "nn.Module"]:
    """Return the callable at a dotted path."""
    module, _, attribute = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"model '{path}' can't be imported: {error}; give package.module.Class"
        ) from error
    if MODELS.accepts(found):
        factory: Callable[..., nn.Module] = found
        return factory
    what = "class" if isinstance(found, type) else type(found).__name__
    raise ValueError(f"model '{path}' is a {what}, not {MODELS.expected()}")


def _returns_module(function: Callable[..., "nn.Module"]) -> bool:
    """Return whether a Python function is annotated with a subclass of nn.Module as its result.

    What a dotted path names comes from a command line or a file, and anything that can be imported
    has one: ``os.system``, ``subprocess.run``. A function is called only if its author has written
    that it makes networks; calling it first, to see what comes out, would be too late.
    """
    from torch import nn

    try:
        result = get_type_hints(function).get("return")
    except Exception:  # a name in an annotation that is there for type checkers alone
        result = None
    return isinstance(result, type) and issubclass(result, nn.Module)


def _probe(model: "nn.Module", name: str, told: dict[str, Any]) -> None:
    """Run one blank example through the network: what does not fit is refused before it trains."""
    import torch

    input_shape, num_classes = told["input_shape"], told["num_classes"]
    shape, kind = "x".join(map(str, input_shape)), torch.long if told["num_symbols"] else None
    what = {1: "features", 2: "series"}.get(len(input_shape), "images")
    what, one = ("symbols", "text") if told["num_symbols"] else (what, "example")
    one = "image" if what == "images" else one
    model.eval()  # no dropout draw, no update of running statistics
    try:
        with torch.no_grad():
            output = model(torch.zeros(1, *input_shape, dtype=kind))
    except Exception as error:
        raise ValueError(
            f"model '{name}' can't take {what} of shape {shape}: {_first_line(error)}"
        ) from error
    model.train()
    actual = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
    if actual != (1, num_classes):
        raise ValueError(
            f"model '{name}' gives {actual} for one {one} of shape {shape}, but the data set needs "
            f"(1, {num_classes})"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
