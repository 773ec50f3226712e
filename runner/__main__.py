"""``python -m fedsweep``, and ``python runner`` in a checkout that is not installed.

A submitted job is one: its working directory is a checkout.
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory


def _main() -> int:
    from fedsweep.cli import main

    return main()


if __name__ == "__main__":
    if __package__:
        sys.exit(_main())
    from places import lay_out  # type: ignore[import-not-found]

    with TemporaryDirectory() as folder:
        lay_out(Path(folder))
        sys.path[0] = folder
        sys.exit(_main())
