"""An app's sweep as it is handed to the sweep engine, for the command line and for Python."""

from collections.abc import Sequence

from fedsweep.app.sweep import AppSweep
from fedsweep.escape import command
from fedsweep.paths import component
from fedsweep.sweeps.resume import Restart
from fedsweep.sweeps.sweep import SweepPlan


def planned(
    sweep: AppSweep,
    words: Sequence[str],
    given: Sequence[str] = (),
    name: str = "",
    restart: Restart | None = None,
) -> SweepPlan:
    """Return what to run.

    Parameters
    ----------
    sweep : AppSweep
        The app's trials.
    words, given : sequence of str
        What they were made of: see :func:`fedsweep.app.sweep.expand_app`.
    name : str
        What the sweep is called; else as the app's project.
    restart : Restart, optional
        What becomes of trials that were run before.

    Raises
    ------
    RunnerError
        The name can't be that of a folder.
    """
    called = component(name or sweep.project.name, "--name")
    again = ["fedsweep", "app", sweep.trials[0].path, *words]
    again += [word for text in given for word in ("--run-config", text)]
    again += ["--name", name] if name else []
    told = f"Flower app {sweep.project.name}, digest {sweep.project.code.digest}"
    return SweepPlan(called, told, command(again), sweep.trials, restart or Restart(), sweep)
