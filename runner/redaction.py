"""Credentials are kept out of all that leaves the process: text on a terminal, errors, runs."""

import re
from collections.abc import Mapping
from typing import Any

_USERINFO = re.compile(r"(?<=://)[^\s'\"]*@")
_SECRET_QUERY = re.compile(  # ``orderByKey`` is the column by which MLflow's UI sorts
    r"([?&](?!orderByKey=)[^=&\s'\"]*(?:token|passw|pwd|secret|key|sig|credential|user)[^=&\s'\"]*=)[^&\s'\"#]+",
    re.IGNORECASE,
)
_TEXT = (".txt", ".md", ".json", ".yaml", ".yml", ".html", ".csv", ".tex", ".log", "MLmodel")


def redact(text: str) -> str:
    """Return the text with the credentials of every URI in it made unreadable.

    They are ``user:password@`` and tokens in a query. Rather too much than too little: a password
    may hold any character, so all up to a word's last ``@`` goes.
    """
    return _SECRET_QUERY.sub(r"\1***", _USERINFO.sub("***@", text))


def redact_all(value: Any) -> Any:
    """Return plain data with the credentials in every text of it made unreadable."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_all(key): redact_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [redact_all(item) for item in value]
    return value


def redact_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return files with the credentials in those that are text made unreadable."""
    return {
        name: _file(content) if name.endswith(_TEXT) else content for name, content in files.items()
    }


def _file(content: bytes) -> bytes:
    try:
        return redact(content.decode()).encode()
    except UnicodeDecodeError:
        return content
