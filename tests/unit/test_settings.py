"""Settings kept in a file: what each setting of a trial is where nobody gives it, and its range.

Another default gives other results to whoever leaves it out, and nothing else would say so.

After a change that should: ``python -m tests.unit.test_settings`` writes the file anew;
its diff is the review.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fedsweep.config import TrialConfig
from fedsweep.config.section import OneOf, group_of
from fedsweep.strategies.ranges import leaves
from tests.unit.test_config_ranges import numbers

FILE = Path(__file__).with_name("settings.json")


def sections(owner: type[BaseModel], place: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield a section and those in it, once for each part that it may be of."""
    yield place, owner
    for name, field in owner.model_fields.items():
        inner = f"{place} {name}".strip()
        if isinstance(one_of := group_of(field), OneOf):
            for part in one_of.family:
                yield from sections(one_of.family.settings(part), f"{inner}={part}")
        else:
            for kind in leaves(field.annotation):
                if hasattr(kind, "model_fields"):
                    yield from sections(kind, inner)


def settings() -> dict[str, dict[str, str]]:
    """Return section -> setting -> its default, and its bounds where it is a number."""
    found: dict[str, dict[str, str]] = {}
    for place, section in sections(TrialConfig, ""):
        for name, field in section.model_fields.items():
            default = field.get_default(call_default_factory=True)
            told = [] if field.is_required() else [shown(default)]
            for kind, bounds in numbers(field).items():
                told += [f"{kind.__name__} {' '.join(f'{k}={v:g}' for k, v in bounds.items())}"]
            found.setdefault(place or "trial", {})[name] = ", ".join(told)
    return found


def shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "a section"
    if isinstance(value, dict) and any(isinstance(own, BaseModel) for own in value.values()):
        value = {name: own.model_dump() for name, own in value.items()}
    return repr(value)


def test_each_setting_is_what_it_was() -> None:
    """In a process of its own: parts that other tests bring are not there."""
    words = [sys.executable, "-c", f"from {__name__} import *; print(json.dumps(settings()))"]
    printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert json.loads(printed) == json.loads(FILE.read_text())


if __name__ == "__main__":
    FILE.write_text(json.dumps(settings(), indent=1) + "\n")
