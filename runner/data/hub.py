"""Data sets of the Hugging Face Hub: a revision's commit, and its files, fetched when read."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedsweep.data.decoding import reason
from fedsweep.data.layout import Kind
from fedsweep.errors import DataError, shown
from fedsweep.files import write_whole

_TIMEOUT_S = 10.0


def commit_of(repo: str, revision: str, cache: Path, ask: bool) -> str:
    """Return the commit that a revision stands for, as it was when first asked: results stay.

    Parameters
    ----------
    cache : Path
        ``data.cache``, which keeps what was found.
    ask : bool
        Whether the Hub may be asked; if not, what is not known is "".

    Raises
    ------
    DataError
        The Hub does not answer, or has no such data set or revision.
    """
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    kept = cache / "contents" / "hub.json"
    try:
        known: dict[str, Any] = json.loads(kept.read_bytes())
    except (OSError, ValueError):
        known = {}
    name = f"{repo}@{revision}"
    if name in known or not ask:
        return str(known.get(name, ""))
    from huggingface_hub import HfApi, constants, snapshot_download

    try:
        if constants.HF_HUB_OFFLINE:
            # The Hub's own cache keeps each commit's files in a folder of its name.
            where = "the Hugging Face Hub's own cache (HF_HUB_OFFLINE is set)"
            commit = Path(
                snapshot_download(
                    repo, repo_type="dataset", revision=revision, local_files_only=True
                )
            ).name
        else:
            # load_dataset would retry for half a minute where there is no network.
            where = "Hugging Face Hub"
            commit = str(
                HfApi().dataset_info(repo, revision=revision, timeout=_TIMEOUT_S).sha or revision
            )
    except Exception as error:  # whatever it is, the data set can't be had
        raise DataError(f"{where}, {repo}@{revision}: {reason(error)}") from error
    with suppress(OSError):  # it is asked again
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(known | {name: commit}).encode())
    return commit


@dataclass(frozen=True)
class HubTree:
    """The files of a data set on the Hub at a commit."""

    repo: str
    commit: str

    @cached_property
    def _folders(self) -> dict[str, dict[str, Kind]]:
        """What each folder holds."""
        folders: dict[str, dict[str, Kind]] = {"": {}}
        for file in self._files():
            path, kind = file, "file"
            while path:
                folder, _, name = path.rpartition("/")
                folders.setdefault(folder, {})[name] = kind  # type: ignore[assignment]
                path, kind = folder, "folder"
        return {path: dict(sorted(entries.items())) for path, entries in folders.items()}

    def _files(self) -> list[str]:
        from huggingface_hub import HfApi, constants, snapshot_download

        try:
            if not constants.HF_HUB_OFFLINE:
                siblings = (
                    HfApi()
                    .dataset_info(self.repo, revision=self.commit, timeout=_TIMEOUT_S)
                    .siblings
                )
                return [sibling.rfilename for sibling in siblings or ()]
            folder = snapshot_download(
                self.repo, repo_type="dataset", revision=self.commit, local_files_only=True
            )
            return [
                str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()
            ]
        except Exception as error:
            raise DataError(
                f"Hugging Face Hub, {self.repo}@{self.commit}: {reason(error)}"
            ) from error

    def entries(self, path: str) -> dict[str, Kind]:
        """Return what a folder holds, sorted by name.

        Raises
        ------
        DataError
            There is no such folder, or the Hub does not answer.
        """
        if path not in self._folders:
            raise DataError(
                f"Hugging Face Hub, {self.repo}@{self.commit}: there is no folder {shown(path)}"
            )
        return self._folders[path]

    def identity(self, path: str) -> object:
        """Return the path: the Hub has no links between folders."""
        return path

    def local(self, path: str) -> Path:
        """Return a file of the Hub's own cache; it is fetched if it is not there.

        Raises
        ------
        DataError
            It can't be fetched.
        """
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(self.repo, path, repo_type="dataset", revision=self.commit))
        except Exception as error:
            raise DataError(
                f"Hugging Face Hub, {self.repo}@{self.commit}, {shown(path)}: {reason(error)}"
            ) from error
