"""Code of somebody's own: a file, and what it imports from its folder.

It is known by its content, and it travels as text: another process, on a node that can't see the
folder, has the same code. Code that is installed as a package is there on all nodes.
"""

import ast
import atexit
import hashlib
import importlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, cached_property
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from inspect import unwrap
from pathlib import Path
from types import ModuleType
from typing import cast

Shape = tuple[int, ...]

_OWN = "fedsweep_own"
"""Where modules of single files lie: no name of theirs hides one of anybody else's."""

TRAVELLED = "fedsweep-code-"
"""How a folder begins in which code lies that came from another node."""


class CodeError(ValueError):
    """Code can't be read or imported; the message begins with its file, and its line if known."""


@dataclass(frozen=True)
class Code:
    """A module of somebody's own, with the files that it is made of.

    Parameters
    ----------
    root : str
        The folder in which its imports are looked up.
    module : str
        Its dotted name from there.
    files : tuple of (str, str)
        Path below the root, and text, of the module and what it imports below the root; of a module
        that is installed nothing.
    installed : str
        The distribution that it comes with, and its version; empty for files.
    """

    root: str
    module: str
    files: tuple[tuple[str, str], ...] = ()
    installed: str = ""

    @cached_property
    def digest(self) -> str:
        """What the code is, whatever folder it lies in: 12 hex digits of SHA-256."""
        told = repr((self.module, self.files, self.installed))
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    @property
    def path(self) -> Path:
        """The module's file."""
        return Path(self.root, self.files[0][0]) if self.files else Path(self.root)


def code_of_file(path: Path) -> Code:
    """Return the code of a file of Python.

    Raises
    ------
    CodeError
        It can't be read, or its syntax is wrong.
    """
    path = path.expanduser().absolute()
    if path.suffix != ".py" or os.path.isdir(path):
        raise CodeError(f"{path} is no file of Python; name one that ends in .py")
    if not os.path.isfile(path):
        there = sorted(other.name for other in path.parent.glob("*.py"))
        near = get_close_matches(path.name, there, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise CodeError(f"there is no file {path}.{hint}")
    return LOADED.read(path.parent, path.stem, path)


def code_of_module(name: str) -> Code:
    """Return the code of an importable module: an installed one, or one on the path of imports.

    Raises
    ------
    CodeError
        There is no such module.
    """
    try:
        spec = find_spec(name)
    except Exception as error:  # a parent package runs, and raises what it likes
        raise CodeError(f"module {name} can't be imported: {error}") from error
    if spec is None or spec.origin is None:
        raise CodeError(f"there is no module {name}; give package.module:Class, or ./file.py:Class")
    origin = Path(spec.origin)
    root = origin.parents[name.count(".") + (origin.name == "__init__.py")]
    if is_installed(origin):
        return Code(str(root), name, (), _distribution(name.partition(".")[0]))
    around = _modules(root, name.split("."))  # the packages that it lies in
    return LOADED.read(root, name, origin, *around)


@cache
def _distribution(package: str) -> str:
    """Return what a package was installed with, and its version; all that is there is looked at."""
    found = packages_distributions().get(package, [])
    return " ".join(f"{name} {version(name)}" for name in found)


def is_installed(path: Path) -> bool:
    """Return whether a file is part of Python or of an installed package, as on every node."""
    places = {sysconfig.get_path(key) for key in ("purelib", "platlib", "stdlib", "platstdlib")}
    # Another environment's packages, on the path of this one, are installed too.
    packages = {"site-packages", "dist-packages"} & {*path.parts}
    return bool(packages) or any(path.is_relative_to(place) for place in places)


def _files(root: Path, *paths: Path) -> Iterator[tuple[str, str]]:
    """Yield files and those below the root that they import, first to last, each once."""
    waiting = [*dict.fromkeys(paths)]
    seen = set(waiting)
    while waiting:
        file = waiting.pop(0)
        try:
            text = file.read_text(encoding="utf-8")
            tree = ast.parse(text)
        except SyntaxError as error:
            raise CodeError(f"{file}:{error.lineno}: SyntaxError: {error.msg}") from error
        except (OSError, ValueError) as error:
            raise CodeError(f"{file} can't be read: {error}") from error
        yield str(file.relative_to(root)), text

        found = [path for path in _imported(root, file, tree) if path not in seen]
        seen.update(found)
        waiting.extend(dict.fromkeys(found))


def _imported(root: Path, file: Path, tree: ast.Module) -> Iterator[Path]:
    """Yield the files below the root that a file may import."""
    package = file.relative_to(root).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(root, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = [*above, *(node.module.split(".") if node.module else ())]
            yield from _modules(root, base)
            for alias in node.names:
                yield from _modules(root, [*base, alias.name])


def _modules(root: Path, names: list[str]) -> Iterator[Path]:
    """Yield the files of a dotted module and of the packages around it."""
    for depth in range(1, len(names) + 1):
        place = root.joinpath(*names[:depth])
        yield from (p for p in (place / "__init__.py", place.with_suffix(".py")) if p.is_file())


# Loading


class _Loaded:
    """The modules of own code in this process: Python has one place for them, so has this."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}  # by digest
        self._latest: dict[tuple[str, str], str] = {}  # root, module -> digest
        self._read: dict[tuple[Path, str], tuple[object, Code]] = {}  # files as they were, code
        self._unpacked: Path | None = None
        self._paths: set[str] = set()

    def has(self, path: str) -> bool:
        """Return whether a file is part of code that was loaded here."""
        return path in self._paths

    def know(self, paths: Iterable[str]) -> None:
        """Take files for somebody's own that are loaded elsewhere."""
        self._paths.update(paths)

    def read(self, root: Path, module: str, *paths: Path) -> Code:
        """Return the code of a module, which is read again where one of its files changed.

        Each cell of a grid asks for it.
        """
        known = self._read.get((root, module))
        if known is None or known[0] != _stamp(known[1]):
            code = Code(str(root), module, tuple(_files(root, *paths)))
            known = self._read[root, module] = _stamp(code), code
        return known[1]

    def module(self, code: Code) -> ModuleType:
        """Return the module, imported once for each content that it has.

        Raises
        ------
        CodeError
            Importing it raises: file and line of its own, and what was raised.
        """
        if code.digest not in self._modules:
            here = code if _is_here(code) else self._unpack(code)
            before = self._latest.get((here.root, here.module))
            if before is not None:
                self._forget(here)
            self._paths |= {path for path, _ in _imports(here)}
            self._modules[code.digest] = _import(here)
            self._latest[here.root, here.module] = code.digest
        return self._modules[code.digest]

    def _forget(self, code: Code) -> None:
        """Have edited files imported anew."""
        importlib.invalidate_caches()
        for path, name in _imports(code):
            if getattr(sys.modules.get(name), "__file__", None) == path:
                del sys.modules[name]

    def _unpack(self, code: Code) -> Code:
        """Write code that came from elsewhere into a folder of this process."""
        if self._unpacked is None:
            self._unpacked = Path(tempfile.mkdtemp(prefix=TRAVELLED))
            atexit.register(shutil.rmtree, self._unpacked, ignore_errors=True)
        root = self._unpacked / code.digest
        for path, text in code.files:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text, encoding="utf-8")
        return Code(str(root), code.module, code.files)


LOADED = _Loaded()


def _imports(code: Code) -> list[tuple[str, str]]:
    """Return the path of each file, and the name under which others import it."""
    return [
        (
            str(Path(code.root, path)),
            path.removesuffix(".py").removesuffix("/__init__").replace("/", "."),
        )
        for path, _ in code.files
    ]


def _stamp(code: Code) -> object:
    """Return what tells whether files of this machine have changed."""
    try:
        stats = [Path(code.root, path).stat() for path, _ in code.files]
    except OSError:
        return None
    return [(stat.st_mtime_ns, stat.st_size, stat.st_ino) for stat in stats]


def same_file(module: str, other: str) -> bool:
    """Return whether two names are of one module, or of two contents of one file."""
    (top, _, name), (other_top, _, other_name) = (n.rpartition(".") for n in (module, other))
    edited = name == other_name and top.startswith(_OWN) and other_top.startswith(_OWN)
    return module == other or edited


def own_place(traceback_text: str) -> str:
    """Return file and line of the last frame of a traceback that is code of somebody's own.

    It may come from another process; of another node's files those are known that travelled there.
    """
    own = [f"{file}:{line}" for file, line, is_own in _frames(traceback_text) if is_own]
    return own[-1] if own else ""


def blamed(error: BaseException) -> str:
    """Return file, line and error, in a line, where code of somebody's own is in its traceback."""
    place = own_place(traceback_of(error))
    return f"{place}: {type(error).__name__}: {error}" if place else ""


def place_of(function: object) -> str:
    """Return file, line and name of a function or method, for who says what it should return."""
    code = getattr(unwrap(cast(Callable[..., object], function)), "__code__", None)
    place = f"{code.co_filename}:{code.co_firstlineno}: " if code else ""
    return f"{place}{getattr(function, '__qualname__', function)}"


def check_shape(function: object, given: Shape, wanted: Shape, of: str) -> None:
    """Refuse numbers of another shape than a function of somebody's own should give."""
    if given != wanted:
        raise ValueError(
            f"{place_of(function)} gave {given} for {of}; it has to give as many numbers"
        )


def traceback_of(error: BaseException) -> str:
    """Return an error with its traceback, and what it was raised from."""
    return "".join(traceback.format_exception(error))


def raised_by_own(traceback_text: str) -> bool:
    """Return whether it was code of somebody's own that raised, and not what it called.

    Or that gave what was refused: the last line then begins with its place (:func:`place_of`).
    """
    frames = _frames(traceback_text)
    if frames and frames[-1][2]:
        return True
    last = traceback_text.strip().rpartition("\n")[2]
    refused = re.match(r"(?:[\w.]+: )?(.+?\.py):\d+: ", last)
    return refused is not None and LOADED.has(refused[1])


def _frames(traceback_text: str) -> list[tuple[str, str, bool]]:
    """Return file, line, and whether it is somebody's own, of each frame, outermost first."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', traceback_text)
    return [(file, line, LOADED.has(file) or TRAVELLED in file) for file, line in frames]


def _is_here(code: Code) -> bool:
    """Return whether the files of this machine are those of the code."""
    try:
        return all(
            Path(code.root, path).read_text(encoding="utf-8") == text for path, text in code.files
        )
    except (OSError, ValueError):
        return False


def _import(code: Code) -> ModuleType:
    if code.root not in sys.path and not code.installed:
        sys.path.append(code.root)  # last: nothing of anybody else's is hidden
    try:
        if code.installed or "." in code.module:
            module = importlib.import_module(code.module)
        else:
            module = _run_file(code)
    except Exception as error:
        place = own_place(traceback_of(error)) or code.path
        raise CodeError(f"{place}: {type(error).__name__}: {error}") from error
    _check_imports(code)
    return module


def _run_file(code: Code) -> ModuleType:
    """Run a file's text as it was read: what Python has cached of the file may be older."""
    name = f"{_OWN}.{code.digest}.{code.module}"
    spec = spec_from_file_location(name, code.path)
    assert spec is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        exec(compile(code.files[0][1], code.path, "exec"), vars(module))
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _check_imports(code: Code) -> None:
    """Refuse code that got another module than that of its folder, by the same name."""
    for path, name in _imports(code)[1:]:
        module = sys.modules.get(name)
        origin = getattr(module, "__file__", None)
        if module is not None and origin != path:
            raise CodeError(
                f"{code.path} imports {name}, and got {origin or 'a module of Python'} in place of "
                f"{path}; rename yours"
            )
