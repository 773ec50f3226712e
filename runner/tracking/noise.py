"""What MLflow and its libraries say of each failed try: some forty lines, which go to a file.

The user gets one line of ours, with the file's name.
"""

import logging
import os
import tempfile
from pathlib import Path

from fedsweep.redaction import redact

_LOUD = ("mlflow", "alembic", "sqlalchemy", "urllib3")


class _Aside(logging.Handler):
    """Appends records to a file under the output folder or, where that is full, a temporary one."""

    def __init__(self, output: Path) -> None:
        super().__init__(logging.WARNING)
        name = f"mlflow-{os.getpid()}.log"
        self._places = [output / "logs" / name, Path(tempfile.gettempdir()) / f"fedsweep-{name}"]
        self.written: Path | None = None
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        text = redact(self.format(record))
        for place in self._places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.write(f"{text}\n")
                self.written = place
                return
            except OSError:
                continue


def keep_aside(output: Path) -> None:
    """From now on have what MLflow logs go to a file, which is made with the first record."""
    handler = _Aside(output)
    for name in _LOUD:
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False


def told() -> str:
    """Return where more is said, as the end of a line; nothing where nothing was."""
    for handler in logging.getLogger(_LOUD[0]).handlers:
        if isinstance(handler, _Aside) and handler.written:
            return f"; more in {handler.written}"
    return ""
