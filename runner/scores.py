"""Scores of predictions by class, which a trial has where ``metrics`` asks for them."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from inspect import Parameter, getdoc
from typing import Any, SupportsFloat, cast

import numpy as np

from fedsweep.catalog import CATALOG, ClassCounts, by_class
from fedsweep.errors import ConfigError
from fedsweep.parts.code import place_of
from fedsweep.parts.registry import Functions

Score = Callable[[ClassCounts], float]


class Scores(Functions[Score]):
    """Scores by name: functions of :class:`ClassCounts`.

    One of somebody's own is called what its docstring's first line says. It is a share, and higher
    is better, unless its attributes ``unit`` and ``better`` say otherwise.
    """

    def __init__(self) -> None:
        super().__init__("metric", str(__package__), "fedsweep.metrics")

    def fits(self, parameters: Sequence[Parameter]) -> bool:
        """Return whether a function is one of one thing."""
        return [p.default is p.empty for p in parameters][:2] in ([True], [True, False])

    def expected(self) -> str:
        """Say what a score is."""
        return "a function of fedsweep.catalog.ClassCounts that returns a number"

    def declared(self, names: Iterable[str]) -> str:
        """Return what there is to say of somebody's own scores, as :meth:`declare` reads it."""
        own = {name: _facts(self[name]) for name in names if self.origin(name)}
        return json.dumps(own) if own else ""

    def declare(self, declared: str) -> None:
        """Have the scores in the catalog whose values a store has, to be shown."""
        for name, facts in (json.loads(declared) if declared else {}).items():
            if name not in CATALOG.on_request:
                CATALOG.put(by_class(name, facts["title"], None, facts["unit"], facts["better"]))

    def _added(self, name: str) -> None:
        facts = _facts(self[name])
        if facts["better"] not in ("higher", "lower", ""):
            raise ValueError(f"{name}.better={facts['better']!r}; give higher, lower or ''")
        try:
            score = partial(_number, self[name])
            CATALOG.put(by_class(name, score=score, **facts))  # type: ignore[arg-type]
        except ConfigError as error:
            raise ValueError(str(error)) from error

    def _read_package(self) -> None:
        """Read what :class:`ClassCounts` has; the catalog has it too."""
        self._add("balanced_acc", ClassCounts.balanced_accuracy)
        self._add("macro_f1", ClassCounts.macro_f1)
        self._add("ece", ClassCounts.calibration_error)


SCORES = Scores()


def _number(score: Score, classes: ClassCounts) -> float:
    """Return what a score of somebody's own gives, or refuse it by where that is written."""
    given = score(classes)
    if not isinstance(given, SupportsFloat) or np.ndim(cast(Any, given)):
        raise TypeError(f"{place_of(score)} returns {type(given).__name__}; return a number")
    return float(given)


def _facts(score: Score) -> dict[str, str]:
    title = (getdoc(score) or "").partition("\n")[0].rstrip(". ")
    return {
        "title": title or score.__name__.replace("_", " "),
        "unit": str(getattr(score, "unit", "%")),
        "better": str(getattr(score, "better", "higher")),
    }
