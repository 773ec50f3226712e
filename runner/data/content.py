"""What a data set is, apart from where it lies: a digest of the bytes that are read.

Files are hashed once: ``<data.cache>/contents`` keeps the hash of each by its path, size and time
of change. A trial's key covers the digest, so that other content makes another trial.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from fedsweep.data.layout import FileLayout, LocalTree, Tree
from fedsweep.errors import DataError, first_of, shown
from fedsweep.files import write_whole

_FRESH_NS = 2_000_000_000
"""A file that changed so lately may change again without a new time: its hash is not kept."""


def digest_of(parts: object) -> str:
    """Return the identity of what can be written as JSON: 16 hex digits."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def files_digest(
    layout: FileLayout, tree: Tree, cache: Path, place: str, owners: Sequence[str] = ()
) -> str:
    """Return the digest of the files that a layout reads: bytes, order, split and class, no names.

    Parameters
    ----------
    cache : Path
        ``data.cache``. What was hashed is kept there; where that can't be written, it is hashed
        again.
    place : str
        The data set's place, as it is said in messages.
    owners : sequence of str
        Whose each file to train on is, where that is asked for and no file's bytes say it.

    Raises
    ------
    DataError
        A file can't be read.
    """
    names = list(dict.fromkeys(file for part in layout.parts for file in part.files))
    hashes = _hashes(names, tree, cache / "contents" / f"at-{digest_of(place)}.json")
    covered = [[[hashes[file] for file in part.files], list(part.classes)] for part in layout.parts]
    digest = digest_of([covered, list(owners)] if owners else covered)
    manifest = cache / "contents" / f"{digest}.json"
    if not manifest.exists():
        whose = dict(zip(layout.train.files, owners, strict=True)) if owners else {}
        _write(manifest, {name: hashes[name] + whose.get(name, "") for name in names})
    return digest


def paths_digest(paths: Sequence[Path], cache: Path, place: str) -> str:
    """Return the digest of files in their order, and of which of them lie in one folder.

    They may lie anywhere on this machine.

    Parameters
    ----------
    cache, place
        As :func:`files_digest` takes them.

    Raises
    ------
    DataError
        A file can't be read.
    """
    tree, names = LocalTree(Path("/")), [str(path) for path in paths]
    hashes = _hashes(names, tree, cache / "contents" / f"at-{digest_of(place)}.json")
    folders = [list(own) for _, own in groupby(names, key=os.path.dirname)]
    covered = [[hashes[name] for name in own] for own in folders]
    digest = digest_of(covered[0] if len(covered) == 1 else covered)
    manifest = cache / "contents" / f"{digest}.json"
    if names and not manifest.exists():
        above = os.path.commonpath([os.path.dirname(name) for name in names])
        _write(manifest, {os.path.relpath(name, above): hashes[name] for name in names})
    return digest


def changed_files(cache: Path, before: str, after: str) -> str:
    """Return what differs between two contents, in words: names of files, as far as known here."""
    old, new = (_read(cache / "contents" / f"{digest}.json") for digest in (before, after))
    if not old or not new:
        return "its files"
    told = [
        *(f"{shown(name)} (changed)" for name in old if name in new and old[name] != new[name]),
        *(f"{shown(name)} (gone)" for name in old if name not in new),
        *(f"{shown(name)} (new)" for name in new if name not in old),
    ]
    return first_of(told, 3) or "the order of its files"


def _hashes(names: Iterable[str], tree: Tree, kept_in: Path) -> dict[str, str]:
    kept = _read(kept_in)
    hashes, entries = {}, {}
    now = time.time_ns()
    for name in names:
        path = tree.local(name)
        try:
            stat = path.stat()
            known = kept.get(name)
            if isinstance(known, list) and known[:2] == [stat.st_size, stat.st_mtime_ns]:
                hashes[name] = known[2]
            else:
                with path.open("rb") as file:
                    hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(
                f"{shown(str(path), 200)} can't be read: {error.strerror}; mend or remove it"
            ) from error
        if now - stat.st_mtime_ns > _FRESH_NS:
            entries[name] = [stat.st_size, stat.st_mtime_ns, hashes[name]]
    if entries != kept:
        _write(kept_in, entries)
    return hashes


def _read(path: Path) -> Mapping[str, object]:
    """Return what a file of the cache holds; nothing where it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: Mapping[str, object]) -> None:
    """Write a file of the cache whole or not at all; it only saves time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(values).encode())
