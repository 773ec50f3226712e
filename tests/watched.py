"""``python -m tests.watched FILE WORDS``: the command line, and a list of what it imports too late.

Too late is off the main thread, or while the writer's thread has work: see
``runner/tracking/imports.py``.
Each line of the file is a module of other people's and the thread that imported it.
"""

import sys
import threading
from pathlib import Path
from typing import Any

from fedsweep.cli import main
from fedsweep.sweeps import schedule


class Watch:
    """Finds no module, but is asked first for each."""

    def __init__(self) -> None:
        self.seen: dict[str, str] = {}
        self.working = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Note a module that is imported too late."""
        thread = threading.current_thread()
        writing = self.working and any(t.name == "mlflow-writer" for t in threading.enumerate())
        if thread is not threading.main_thread() or writing:
            self.seen[name] = thread.name

    def too_late(self) -> list[str]:
        """Return what was found and is not of Python's own library."""
        ours = sys.stdlib_module_names
        return [
            f"{name} {thread}"
            for name, thread in self.seen.items()
            if name in sys.modules and name.partition(".")[0] not in ours
        ]


def watched(words: list[str]) -> tuple[int, list[str]]:
    """Run a command; return its status, and what it imported too late."""
    watch = Watch()
    begin = schedule.Schedule.run

    def begins(*args: Any) -> None:
        watch.working = True
        begin(*args)

    schedule.Schedule.run = begins  # type: ignore[method-assign]
    sys.meta_path.insert(0, watch)  # type: ignore[arg-type]
    return main(words), watch.too_late()


if __name__ == "__main__":
    status, found = watched(sys.argv[2:])
    Path(sys.argv[1]).write_text("".join(f"{line}\n" for line in found))
    sys.exit(status)
