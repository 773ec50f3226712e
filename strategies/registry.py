"""The methods there are: each a file, called as it is.

A method is a Flower ``Strategy`` whose own body names its ``settings``, and beside it, where its
clients do more than to train what they were sent, a
:class:`~fedsweep.strategies.clients.ClientPart` that names its ``method``.
"""

from types import ModuleType
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedsweep.parts.code import same_file
from fedsweep.parts.family import Family
from fedsweep.strategies.base import sums_suffice
from fedsweep.strategies.clients import ClientPart
from fedsweep.strategies.settings import FedAvgSettings
from fedsweep.strategies.signature import settings_by_signature


class Methods(Family[type[Strategy]]):
    """Methods by name, with what their clients do."""

    def __init__(self) -> None:
        entries = "fedsweep.strategies"
        super().__init__("strategy", str(__package__), entries, "fedavg", "STRATEGIES")
        self._client_parts: dict[str, type[ClientPart]] = {}
        self._by_signature: dict[type[Strategy], type[FedAvgSettings]] = {}

    def is_part(self, value: object) -> bool:
        """Return whether it is a Flower strategy whose own body names its settings."""
        is_strategy = isinstance(value, type) and issubclass(value, Strategy)
        return is_strategy and "settings" in vars(value)

    def accepts(self, value: object) -> bool:
        """Return whether it is a Flower strategy: one without settings is asked what it takes."""
        return isinstance(value, type) and issubclass(value, Strategy)

    def expected(self) -> str:
        """Say what a method is."""
        return "a class derived from flwr.serverapp.strategy.Strategy"

    def settings(self, name: str) -> type[FedAvgSettings]:
        """Return the class of a method's settings.

        Raises
        ------
        ValueError
            It declares none, and its constructor needs what no setting can give.
        """
        method = self[name]
        declared: type[FedAvgSettings] | None = vars(method).get("settings")
        if declared is not None:
            return declared
        if method not in self._by_signature:
            self._by_signature[method] = settings_by_signature(method)
        return self._by_signature[method]

    def saying(self, fact: str) -> list[str]:
        """Return the methods whose class says a fact: see :func:`fedsweep.strategies.base.says`."""
        return [name for name, method in self.items() if vars(method).get(fact, False)]

    def of_sums(self) -> list[str]:
        """Return the methods for which sums of the clients' models suffice."""
        return [name for name, method in self.items() if sums_suffice(method)]

    def title(self, name: str) -> str:
        """Return what a method's paper calls it: its class says so, or is called so."""
        if name not in self:
            return name
        said: str | None = vars(self[name]).get("title")
        return said or self[name].__name__

    def client_part(self, method: str) -> ClientPart:
        """Return what the clients do whom messages tell a method; "" is FedAvg's.

        Raises
        ------
        ValueError
            No client part is called so.
        """
        self._parts()
        if method not in self._client_parts:
            valid = ", ".join(sorted(name for name in self._client_parts if name))
            raise ValueError(f"unknown method '{method}'. Valid: {valid}.")
        return self._client_parts[method]()

    def read(self, module: ModuleType) -> None:
        """Take the client parts of a module.

        Raises
        ------
        ValueError
            A client part of another file is called so, or one overrides nothing.
        """
        kinds = [kind for kind in vars(module).values() if _is_own_part(kind, module)]
        for kind in kinds:
            _check_overrides(kind, module.__file__)
            there = self._client_parts.get(kind.method)
            if there is not None and not same_file(there.__module__, kind.__module__):
                raise ValueError(
                    f"{module.__file__}: there is a client part of method '{kind.method}' already; "
                    "rename yours"
                )
        self._client_parts |= {kind.method: kind for kind in kinds}


def _check_overrides(kind: type[ClientPart], file: str | None) -> None:
    """Refuse clients that do nothing of their own: FedAvg's would train under their name."""
    base = ClientPart
    if kind is not base and (kind.fit, kind.model) == (base.fit, base.model):
        raise ValueError(
            f"{file}: {kind.__name__} overrides neither fit nor model, so its clients are FedAvg's"
        )


def _is_own_part(value: Any, module: ModuleType) -> bool:
    is_part = isinstance(value, type) and issubclass(value, ClientPart) and "method" in vars(value)
    return is_part and value.__module__ == module.__name__


STRATEGIES = Methods()


def settings_of(name: str = "fedavg", **values: Any) -> FedAvgSettings:
    """Return a method's settings, its defaults where no value is given.

    Raises
    ------
    ValueError
        There is no such method.
    pydantic.ValidationError
        A key is not one of the method's, or a value is not in its range.
    """
    found: FedAvgSettings = STRATEGIES.make(name, **values)
    return found
