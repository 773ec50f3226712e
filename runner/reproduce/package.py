"""A sweep as one file that others can check: its configurations, tables, rounds and hashes.

``verify`` runs some of its trials again, and compares bits.
"""

import gc
import io
import json
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from math import isinf, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsweep import __version__, escape
from fedsweep.app.sweep import expand_app
from fedsweep.app.trial import run_alone
from fedsweep.catalog import CATALOG
from fedsweep.engine.flower import quiet
from fedsweep.errors import RunnerError, one_line, shown
from fedsweep.files import write_whole
from fedsweep.records import TrialResult
from fedsweep.redaction import redact_files
from fedsweep.report.page import story
from fedsweep.report.report import report
from fedsweep.sweeps.compose import Trial, compose_trial, with_contents
from fedsweep.sweeps.prepare import prepare_inline
from fedsweep.sweeps.schedule import import_trial
from fedsweep.trial.trial import run_trial

if TYPE_CHECKING:
    import pandas as pd

    from fedsweep.tracking.read import StoredSweep, StoredTrial

MANIFEST = "manifest.json"
_OF_APP = "fedsweep app "  # how the commands of a Flower app's trials, and of its sweep, begin
_FORM = 1
_DATE = (2000, 1, 1, 0, 0, 0)  # the same store gives the same file
_README = """\
# {name}

A sweep of fedsweep {version}, run {run}. `manifest.json` has each trial's settings, hash of final
weights and final metrics, and the SHA-256 of each file here. `report/index.html` is the page to
open; `rounds/` has the metrics of each round, `clients/` those of each client, `configs/` each
trial's whole configuration.

    fedsweep verify {file}

runs some of its trials again and compares them to the bit.{needs} The whole sweep:

{command}
"""


_NEEDS_APP = """ They need the Flower app, whose digest is
among each trial's settings: in the folder that the command names, or in that of `--app FOLDER`."""


@dataclass(frozen=True)
class Checked:
    """What became of a trial that was run again."""

    key: str
    name: str
    same: bool
    told: str


def export(sweep: "StoredSweep", path: Path) -> int:
    """Write a sweep to a ZIP file; return how many trials are in it.

    Raises
    ------
    RunnerError
        No trial of it has finished, or the file can't be written.
    """
    made = report(sweep)
    finished = [trial for trial in sweep.trials if trial.status == "FINISHED"]
    files: dict[str, bytes] = {
        f"report/{name}": escape.storable(content).encode() if isinstance(content, str) else content
        for name, content in made.files.items()
    }
    for trial in finished:
        files |= _of_trial(trial)
    environment = dict(story(sweep).environment)
    files["environment.json"] = _json(environment)
    files["README.md"] = _README.format(
        name=escape.markdown(sweep.name),
        version=__version__,
        run=sweep.run_id,
        file=escape.markdown(path.name),
        command=escape.fence(sweep.command),
        needs=_NEEDS_APP if sweep.command.startswith(_OF_APP) else "",
    ).encode()
    files = redact_files(files)
    places = dict(zip((trial.run_id for trial in sweep.trials), sweep.places, strict=True))
    files[MANIFEST] = _json({
        "form": _FORM,
        "version": __version__,
        "sweep": sweep.name,
        "run": sweep.run_id,
        "command": sweep.command,
        "axes": list(sweep.axes),
        "trials": [_told(trial, places[trial.run_id]) for trial in finished],
        "sha256": {name: sha256(content).hexdigest() for name, content in sorted(files.items())},
    })  # fmt: skip
    try:
        write_whole(path, _zipped(files))
    except OSError as error:
        raise RunnerError(f"{path} can't be written ({error}); name another file") from error
    return len(finished)


def verify(
    path: Path, sample: int, words: Sequence[str], tell: Callable[[str], None], app: str = ""
) -> list[Checked]:
    """Check the files of an exported sweep, run some of its trials again, and compare their bits.

    Parameters
    ----------
    path : Path
        What :func:`export` wrote.
    sample : int
        Trials to run again, spread over the grid: the same ones each time.
    words : sequence of str
        Settings of this session, such as ``data.root``.
    tell : callable
        Is given each trial's label before it is run.
    app : str
        Folder of the Flower app that the trials are of, where it is not as their commands say.

    Raises
    ------
    RunnerError
        It is no such file, or one of its files is not what its manifest says; or an app is named,
        and its trials are of none.
    """
    manifest = _read(path)
    trials: list[dict[str, Any]] = manifest["trials"]
    last, steps = len(trials) - 1, max(1, sample - 1)
    chosen = dict.fromkeys(round(i * last / steps) for i in range(min(sample, len(trials))))
    if app and not any(str(trial["command"]).startswith(_OF_APP) for trial in trials):
        raise RunnerError(f"--app {shown(app)}: the trials of {path} are of no Flower app")
    return [_run_again(trials[i], words, tell, app) for i in chosen]


def _of_trial(trial: "StoredTrial") -> dict[str, bytes]:
    """Return the files of a trial: its configuration, its rounds, its clients."""
    key = trial.run.data.tags["trial.key"]
    keys = [name for name in trial.run.data.metrics if not name.startswith("0_final/")]
    files = {f"rounds/{key}.parquet": _parquet(trial.history(sorted(keys)))}
    clients = trial.table("clients")
    if clients is not None:
        files[f"clients/{key}.parquet"] = _parquet(clients)
    config = trial.text("config.yaml")
    if config is not None:
        files[f"configs/{key}.yaml"] = config.encode()
    return files


def _told(trial: "StoredTrial", place: Mapping[str, str]) -> dict[str, Any]:
    tags = trial.run.data.tags
    return {
        "key": tags["trial.key"],
        "name": trial.name,
        "axes": dict(place),
        "command": trial.command,
        "weights_sha256": tags.get("weights_sha256", ""),
        "final": {name: _as_json(value) for name, value in sorted(trial.final.items())},
    }


def _run_again(
    told: Mapping[str, Any], words: Sequence[str], tell: Callable[[str], None], app: str
) -> Checked:
    """Run a trial in this process, and compare the hash of its weights and its final metrics."""
    key, name = str(told["key"]), str(told["name"])
    tell(name)
    try:
        trial, run = _composed(told["command"], words, app)
    except (RunnerError, ValueError) as error:
        return Checked(key, name, False, f"it can't be composed here: {one_line(error)}")
    if trial.config.key != key:
        return Checked(
            key,
            name,
            False,
            f"it is another trial here ({trial.config.key}): its data, its code or this version "
            "of fedsweep differ",
        )
    quiet()
    import_trial()
    gc.collect()
    result = run()
    lacking = sorted(_differences(told["final"], result.summary))
    if told["weights_sha256"] != result.weights_sha256:
        lacking.insert(0, "the final weights")
    if lacking:
        return Checked(key, name, False, f"not the same: {', '.join(lacking)}")
    return Checked(key, name, True, "the same bits")


def _composed(
    command: str, words: Sequence[str], app: str
) -> tuple[Trial, Callable[[], TrialResult]]:
    """Return the trial that a command runs, and what runs it.

    Raises
    ------
    RunnerError
        It can't be had here.
    ValueError
        It is no command of a trial.
    """
    match shlex.split(command):
        case ["fedsweep", "run", *given]:
            [trial] = with_contents([compose_trial([*given, *words])])
            return trial, partial(_result, trial)
        case ["fedsweep", "app", folder, *given]:
            sweep = expand_app(app or folder, [*given, *words])
            [of_app] = sweep.trials
            return of_app, partial(run_alone, of_app.config, sweep.project.code)
        case _:
            raise ValueError(f"its command is none of a trial: {shown(command)}")


def _result(trial: Trial) -> TrialResult:
    data = prepare_inline([trial])[trial.config.key]
    *_, result = run_trial(trial.config, data.images, data.split)
    assert isinstance(result, TrialResult)
    return result


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, float]) -> Iterator[str]:
    """Yield the final metrics that learning decides and that are not the same to the bit.

    One that the trial no longer has is not the same.
    """
    for name, value in theirs.items():
        learnt = CATALOG.final(name).follows == "learning"
        if learnt and (name not in ours or _as_json(float(ours[name])) != value):
            yield name


def _as_json(value: float) -> float | str | None:
    """Return a number as JSON has it: NaN as null, what is infinite as a text."""
    return None if isnan(value) else f"{value}" if isinf(value) else value


def _read(path: Path) -> dict[str, Any]:
    """Return the manifest of an exported sweep, all of whose files are as it says."""
    try:
        with zipfile.ZipFile(path) as packed:
            manifest: dict[str, Any] = json.loads(packed.read(MANIFEST))
            if manifest.get("form") != _FORM:
                raise RunnerError(f"{path} was written by another version of fedsweep")
            for name, digest in manifest["sha256"].items():
                if sha256(packed.read(name)).hexdigest() != digest:
                    raise RunnerError(f"{path}: {shown(name)} is not what was exported")
    except RunnerError:
        raise
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise RunnerError(
            f"{path} is no exported sweep ({one_line(error)}); name what `fedsweep export` wrote"
        ) from error
    return manifest


def _zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in sorted(files.items()):
            packed.writestr(zipfile.ZipInfo(name, _DATE), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _parquet(table: "pd.DataFrame") -> bytes:
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
