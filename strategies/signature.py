"""Settings of a Flower strategy that declares none: what its constructor takes."""

from inspect import Parameter, signature
from operator import or_
from typing import Any, ClassVar, Literal, get_origin, get_type_hints

from flwr.serverapp.strategy import FedAvg, Strategy
from pydantic import Field, create_model

from fedsweep.strategies.ranges import leaves
from fedsweep.strategies.settings import FedAvgSettings

TOLD = ("seed", "client_learning_rate", "groups", "drifted", "drift_round")
"""What a trial tells a constructor that has a parameter for it."""

_PROTOCOL = "_key"
"""How parameters of Flower's strategies end that name records of messages: those of our clients."""

_KINDS = {bool, int, float, str, type(None)}


class SignatureSettings(FedAvgSettings):
    """Settings that were read from a constructor."""

    without: ClassVar[frozenset[str]] = frozenset()
    """Keys of every method that this constructor has no parameter for."""

    def idle(self) -> dict[str, str]:
        """Return the keys that have no effect: those that the constructor does not take."""
        why = f"strategy={self.name}, whose constructor has no such parameter"
        return super().idle() | dict.fromkeys(self.without, why)


def parameters(kind: type[Strategy]) -> dict[str, Parameter]:
    """Return what a class's constructor takes, and those that it passes the rest to."""
    found: dict[str, Parameter] = {}
    for base in kind.__mro__:
        if "__init__" in vars(base):
            own = signature(vars(base)["__init__"]).parameters
            found = {**own, **found}
            if not any(p.kind is Parameter.VAR_KEYWORD for p in own.values()):
                break
    rest = (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    return {key: p for key, p in found.items() if key != "self" and p.kind not in rest}


def settings_by_signature(kind: type[Strategy]) -> type[SignatureSettings]:
    """Return settings for the numbers, texts and switches that a constructor takes by keyword.

    Raises
    ------
    ValueError
        It needs something else: which parameter.
    """
    fields: dict[str, Any] = {}
    taken = parameters(kind)
    for key, parameter in taken.items():
        is_protocol = key.endswith(_PROTOCOL) and key in parameters(FedAvg)
        if key in TOLD or key in FedAvgSettings.model_fields or is_protocol:
            continue
        annotation = _hint(kind, parameter)
        if _is_setting(annotation):
            default = ... if parameter.default is Parameter.empty else parameter.default
            fields[key] = (annotation, Field(default, description=f"{key} of {kind.__name__}"))
        elif parameter.default is Parameter.empty:
            raise ValueError(
                f"{kind.__name__} needs {key}, and no setting can give it; let it have a default, "
                "or annotate it as bool, int, float, str or Literal"
            )
    left_alone = {"name", "min_fit_fraction"}
    without = frozenset(FedAvgSettings.model_fields.keys() - taken.keys() - left_alone)
    made = create_model(f"{kind.__name__}Settings", __base__=SignatureSettings, **fields)
    made.without = without
    return made


def _hint(kind: type[Strategy], parameter: Parameter) -> Any:
    """Return a parameter's type, or that of its default where none is written."""
    for base in kind.__mro__:
        init = vars(base).get("__init__")
        if init is not None and parameter.name in signature(init).parameters:
            try:
                hints = get_type_hints(init)
            except Exception:  # a name that is there for type checkers alone
                hints = {}
            if parameter.name in hints:
                return hints[parameter.name]
            break
    return type(parameter.default) if type(parameter.default) in _KINDS - {type(None)} else None


def _is_setting(annotation: object) -> bool:
    kinds = [*leaves(annotation)] if annotation is not None else []
    plain = (isinstance(kind, type) and kind in _KINDS for kind in kinds)
    literal = (get_origin(kind) is Literal for kind in kinds)
    return bool(kinds) and all(map(or_, plain, literal))
