"""The form in which an operation waits on disk.

What is read back may have been damaged, or made by somebody else.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedsweep.errors import RunnerError
from fedsweep.paths import relative
from fedsweep.tracking.ops import Op

VERSION = 1
TOKEN = r"[0-9A-Za-z_-]{1,64}"

_Token = Annotated[str, Field(pattern=f"^{TOKEN}$")]
_RunId = Annotated[str, Field(pattern="^[0-9a-f]{32}$")]


class Damaged(Exception):
    """What lies in an outbox is no operation; the message says why, in a line."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Create(_Form):
    name: str
    start_ms: int
    tags: dict[str, str]
    parent: _Token | None


class _Reopen(_Form):
    run_id: _RunId
    was: str
    tags: dict[str, str]
    parent: _Token | None


class _Batch(_Form):
    metrics: list[Annotated[list[Any], Field(min_length=4, max_length=4)]] = []
    tags: dict[str, str] = {}
    params: dict[str, str] = {}


class _Files(_Form):
    pass


class _Dataset(_Form):
    name: str
    digest: str
    source_type: str
    source: str
    profile: str


class _Model(_Form):
    name: Annotated[str, Field(pattern="^[0-9a-z_]{1,64}$")]


class _End(_Form):
    status: Literal["FINISHED", "FAILED", "KILLED"]
    end_ms: int
    reason: str


class _Head(_Form):
    version: int
    kind: str
    run: _Token
    data: dict[str, Any]
    files: list[str]


class _Row(_Form):
    key: str
    value: float
    time_ms: int
    step: int


_FORMS: dict[str, type[_Form]] = {
    "create": _Create,
    "reopen": _Reopen,
    "batch": _Batch,
    "files": _Files,
    "dataset": _Dataset,
    "model": _Model,
    "end": _End,
}


def dump(op: Op) -> bytes:
    """Return what is written of an operation, but for the content of its files."""
    head = {
        "version": VERSION,
        "kind": op.kind,
        "run": op.run,
        "data": op.data,
        "files": list(op.files),
    }
    return json.dumps(head).encode()


def load(text: bytes) -> tuple[Op, list[str]]:
    """Return an operation without its files, and their names.

    Raises
    ------
    Damaged
        The text was cut off, is of another version, or says what no operation of ours says.
    """
    try:
        loaded = json.loads(text)
        version = loaded.get("version") if isinstance(loaded, dict) else VERSION
        if version != VERSION:
            raise Damaged(f"is of version {version!r} of fedsweep's outbox, but this is {VERSION}")
        head = _Head.model_validate(loaded)
        if head.kind not in _FORMS:
            raise Damaged(f"operation {head.kind!r} is unknown")
        _FORMS[head.kind].model_validate(head.data)
        for row in head.data.get("metrics", ()):
            _Row.model_validate(dict(zip(_Row.model_fields, row, strict=True)))
        for name in head.files:
            relative(name, "the name of a file")
        if len(set(head.files)) < len(head.files) or (
            head.kind == "model" and "MLmodel" not in head.files
        ):
            raise Damaged("its files are not those of such an operation")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise Damaged(f"{place}: {first['msg']}") from error
    except (ValueError, RecursionError) as error:
        raise Damaged(f"is no JSON ({error})") from error
    except RunnerError as error:
        raise Damaged(str(error)) from error
    return Op(head.kind, head.run, head.data), head.files
