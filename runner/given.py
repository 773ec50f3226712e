"""What is given in Python, as words of the command line: classes, functions, data, plain values.

A part of somebody's own is named by where its code lies. One that is defined in a notebook, or in
the script that runs, lies in no file that could be imported: its definition, and what it needs of
those around it, is written into a file of its own, and that is named. Data are kept beside such a
file, under the digest of what they hold. So a trial is the same trial in another session, on other
nodes, and on the command line.
"""

import ast
import builtins
import io
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from inspect import isclass, isfunction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from fedsweep.data.functions import arrays_digest, splits_of
from fedsweep.errors import ConfigError, shown
from fedsweep.files import write_whole
from fedsweep.parts.code import is_installed
from fedsweep.places import PACKAGE
from fedsweep.scenario.tasks.images import Images
from fedsweep.sweeps.words import literal, parse

_MAIN = "__main__"
_FORMS = "give text, a number, a boolean, None, a list, a mapping, or a part of your own"


def words_of(
    settings: Mapping[str, object], axes: Mapping[str, Iterable[object]], folder: Path
) -> list[str]:
    """Return settings and axes as words.

    Parameters
    ----------
    settings : mapping
        Full key to value.
    axes : mapping
        Full key to the values of an axis.
    folder : Path
        Where files are written for what lies in none.

    Raises
    ------
    ConfigError
        A value can't be written as a word, or its code can't be had.
    """
    data = {k: v for k, v in settings.items() if k.startswith("dataset.")}
    written = partial(_written, folder=folder, data=data)
    words = [f"{key}={written(key, value)}" for key, value in settings.items()]
    for key, values in axes.items():
        if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
            raise ConfigError(f"the axis {key} is {shown(repr(values))}; give its values as a list")
        words.append(f"{key}={','.join(written(key, value) for value in values)}")
    return words


def _written(key: str, value: object, folder: Path, data: Mapping[str, object]) -> str:
    if key == "dataset" and not isinstance(value, str) and not callable(value):
        return literal(_kept(value, folder, data))
    return literal(_plain(key, value, folder))


def _plain(key: str, value: Any, folder: Path) -> Any:
    """Return a value as YAML has it."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(key, item, folder) for k, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(key, item, folder) for item in value]
    if isclass(value) or isfunction(value):
        return reference(value, folder)
    raise ConfigError(f"{key}: a {type(value).__name__} is no setting; {_FORMS}")


# Classes and functions


def reference(value: Any, folder: Path) -> str:
    """Return where the code of a class or a function lies, as a part is named.

    Raises
    ------
    ConfigError
        It has no place that another process could read it from.
    """
    name, module = value.__qualname__, value.__module__
    if "<lambda>" in name:
        raise ConfigError("a lambda has no name to be called by; write a function with def")
    if "." in name:
        raise ConfigError(
            f"{name.replace('.<locals>', '')} is defined inside of another; define "
            f"{name.rpartition('.')[2]} at the top"
        )
    if module == _MAIN:
        path = folder.absolute() / f"{name}.py"
        _write(path, _Definitions().text(value).encode())
        return f"{path}:{name}"
    if getattr(sys.modules.get(module), name, None) is not value:
        raise ConfigError(f"{name} is not what module {module} has by this name; import it anew")
    if module.startswith(f"{PACKAGE}."):  # one of this project: its file has its name
        return str(module.rpartition(".")[2])
    return f"{module}:{name}"


class _Definitions:
    """The definitions of the notebook or the script that runs, and what they are made of."""

    def __init__(self) -> None:
        self._names = vars(sys.modules[_MAIN])
        self._texts: dict[str, tuple[str, ast.stmt]] = {}
        for text in _texts(self._names):
            self._texts |= _defined(text)

    def text(self, value: Any) -> str:
        """Return a file of Python that defines a class or a function as it is defined here.

        Raises
        ------
        ConfigError
            It needs what no file can define.
        """
        found: dict[str, str] = {}
        self._add(value.__name__, value, value.__name__, found)
        head = f'"""{value.__name__}, as it was defined in Python."""'
        imports = [text for text in found.values() if text.startswith(("import ", "from "))]
        others = [text for text in found.values() if text not in imports]
        return "\n\n".join([head, "\n".join(imports), *others]) + "\n"

    def _add(self, name: str, value: Any, of: str, found: dict[str, str]) -> None:
        """Add what defines a name, after what that needs."""
        if name in found:
            return
        if not self._is_here(value):
            found[name] = _outside(name, value, of)
            return
        if name not in self._texts or self._names.get(name) is not value:
            raise ConfigError(
                f"the text of {name} is not known: run its definition again, at the top of a cell, "
                "or put it into a file"
            )
        text, node = self._texts[name]
        found[name] = ""  # it may need itself
        for needed in _needed(node):
            if needed in self._names and needed != name:
                self._add(needed, self._names[needed], of, found)
        del found[name]
        found[name] = text + self._attributes(name, value, of)

    def _attributes(self, name: str, value: Any, of: str) -> str:
        """Return what a function was given beside its definition, such as ``score.unit = ""``."""
        given = vars(value) if isfunction(value) else {}
        lines = []
        for key, item in given.items():
            if key.startswith("__"):  # a decorator's, which is part of the definition
                continue
            if not _is_literal(item):
                raise ConfigError(f"{of} needs {name}.{key}, which no file can define")
            lines.append(f"{name}.{key} = {item!r}")
        return "".join(f"\n\n{line}" for line in lines)

    def _is_here(self, value: Any) -> bool:
        return (isclass(value) or isfunction(value)) and value.__module__ == _MAIN


def _texts(names: Mapping[str, Any]) -> Iterator[str]:
    """Yield what was run: the cells of a notebook in their order, or a script."""
    cells = names.get("In")
    if isinstance(cells, list) and "get_ipython" in names:
        yield from cells
    elif file := names.get("__file__"):
        yield Path(file).read_text(encoding="utf-8")


def _defined(text: str) -> dict[str, tuple[str, ast.stmt]]:
    """Return the text of each class and function that is defined at the top of a text."""
    try:
        tree = ast.parse(text)
    except SyntaxError:  # nothing of it was run
        return {}
    lines = text.split("\n")
    found: dict[str, tuple[str, ast.stmt]] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            found[node.name] = "\n".join(lines[first - 1 : node.end_lineno]), node
    return found


def _needed(node: ast.stmt) -> list[str]:
    """Return the names that a definition may look up around it."""
    names = [part.id for part in ast.walk(node) if isinstance(part, ast.Name)]
    return [name for name in dict.fromkeys(names) if not hasattr(builtins, name)]


def _outside(name: str, value: Any, of: str) -> str:
    """Return the line that gives a name what it has here: an import, or a constant."""
    if isinstance(value, ModuleType):
        _check_module(value, of)
        return f"import {value.__name__} as {name}"
    if _is_literal(value):
        return f"{name} = {value!r}"
    module = getattr(value, "__module__", None)
    called = getattr(value, "__qualname__", None) or getattr(value, "_name", None)
    there = sys.modules.get(str(module))
    if there is None or not called or getattr(there, called, None) is not value:
        raise ConfigError(
            f"{of} needs {name} ({type(value).__name__}), which no file can define; make it inside "
            f"of {of}, or put both into a file"
        )
    _check_module(there, of)
    return f"from {module} import {called} as {name}"


def _check_module(module: ModuleType, of: str) -> None:
    """Refuse a module that lies in a file of the user's: it is not there on other nodes."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] == PACKAGE or is_installed(Path(file)):
        return
    raise ConfigError(
        f"{of} needs {module.__name__}, which lies in {file}; put {of} into a file beside it and "
        f"give {Path(file).parent}/FILE.py:{of}, or import it"
    )


def _is_literal(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False


# Data

_LOADER = '''"""Data that were given in Python: what they hold lies beside this file."""

from pathlib import Path

import numpy as np


def {name}():
    """Return the splits: images (N, C, H, W), labels, and the names of the classes."""
    with np.load(Path(__file__).with_suffix(".npz")) as kept:
        splits = sorted({{key.rpartition(".")[0] for key in kept}})
        keys = {{s: [f"{{s}}.{{part}}" for part in ("images", "labels", "names")] for s in splits}}
        return {{s: tuple(kept[key] for key in of if key in kept) for s, of in keys.items()}}
'''


def _kept(given: object, folder: Path, settings: Mapping[str, object]) -> str:
    """Keep data, and return the reference of a function that gives them again."""
    words = parse(f"{key}={literal(_plain(key, value, folder))}" for key, value in settings.items())
    values = {word.key.removeprefix("dataset."): word.value for word in words}
    columns = {k: v for k, v in values.items() if k in Images.model_fields}
    cfg = Images.model_validate({**columns, "name": "given"})
    train, test = splits_of(cfg, given, "the data set")
    splits = {cfg.train_split: train} | ({cfg.test_split: test} if test else {})
    arrays: dict[str, np.ndarray] = {}
    for split, (images, labels, names) in splits.items():
        arrays |= {f"{split}.images": images, f"{split}.labels": labels}
        if names:
            arrays[f"{split}.names"] = np.array(names)

    name = f"data_{arrays_digest([*arrays], arrays.values())[:8]}"
    path = folder.absolute() / f"{name}.py"
    if not path.exists():
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, **arrays)
        _write(path.with_suffix(".npz"), content.getvalue())
        _write(path, _LOADER.format(name=name).encode())
    return f"{path}:{name}"


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise ConfigError(
            f"what is given in Python can't be kept in {path.parent}: {error.strerror}; "
            "name another output"
        ) from error
