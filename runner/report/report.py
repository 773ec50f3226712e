"""A report of a sweep, from the tracking store alone: the table as chosen, figures, one page.

``table_of`` is the table as data, which the Python API and each format stand on.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedsweep.errors import RunnerError
from fedsweep.escape import line, storable
from fedsweep.figures.canvas import Page
from fedsweep.figures.style import way_of
from fedsweep.files import write_whole
from fedsweep.records import TrialRow
from fedsweep.report.choice import EVERYTHING, Choice, inches, picked
from fedsweep.report.curves import Target, to_target, trial_curves, within_epsilon
from fedsweep.report.figures import sweep_figures
from fedsweep.report.layout import Chosen, chosen, reader
from fedsweep.report.page import html, html_table
from fedsweep.report.results import csv, trials_table
from fedsweep.report.searched import Searched
from fedsweep.report.searches import search_figures
from fedsweep.report.table import Lines, Table
from fedsweep.report.text import document_markdown, latex, markdown
from fedsweep.report.worst import worst_table
from fedsweep.tracking.read import ended_early

if TYPE_CHECKING:
    from fedsweep.tracking.read import StoredSweep

_log = logging.getLogger("fedsweep.report")

PAGE = "index.html"
"""What a reader opens."""


def table_of(sweep: "StoredSweep", choice: Choice = EVERYTHING) -> Chosen:
    """Return the table that a choice makes of a stored sweep.

    Raises
    ------
    RunnerError
        The sweep has no such axis, setting or metric, or no trial that is shown has finished.
    """
    target = Target.parse(choice.target) if choice.target else None
    curves = _curves(sweep, choice, target) if target else None
    return _chosen(sweep, choice, target, curves)


def narrow(choice: Choice) -> Choice:
    """Return what fits a paper's page: where nothing is chosen, no interval and fewer columns."""
    return choice if choice.is_chosen else choice.model_copy(update={"spread": "std"})


def printed(table: Table, kind: str, name: str) -> str:
    """Return a table in a format: ``md``, ``latex``, ``csv`` or ``html``."""
    if kind == "latex":
        return latex(table, name)
    if kind == "html":
        return html_table(table)
    if kind == "csv":
        headings, *rest = [
            [cell if isinstance(cell, str) else cell.strong + cell.rest for cell in line_]
            for line_ in table.lines()
        ]
        return str(pd.DataFrame(rest, columns=headings).to_csv(index=False))
    caption = f"\n{table.caption}\n" if table.caption else ""
    return markdown(table.lines()) + caption


@dataclass(frozen=True)
class Report:
    """A report: its table as data, its files by path, and other tables by their titles."""

    chosen: Chosen
    files: dict[str, str | bytes]
    others: Mapping[str, Table] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the files to a folder.

        Raises
        ------
        RunnerError
            It can't be written.
        """
        try:
            for name, content in self.files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                encoded = storable(content).encode() if isinstance(content, str) else content
                write_whole(path, encoded)
        except OSError as error:
            raise RunnerError(
                f"the report can't be written to {folder} ({error}); name another folder with --out"
            ) from error

    def records(self) -> list[dict[str, Any]]:
        """Return the results as plain data, a mapping per cell; what is missing is None."""
        frame = self.chosen.cells.frame().astype(object)
        rows = frame.where(frame.notna(), None).to_dict("records")
        return [{str(key): value for key, value in row.items()} for row in rows]


def report(
    sweep: "StoredSweep",
    choice: Choice = EVERYTHING,
    again: str = "",
) -> Report:
    """Return a report: one page, the table as Markdown, CSV and LaTeX, the figures.

    Parameters
    ----------
    sweep : StoredSweep
        As the store has it.
    choice : Choice
        What is shown of it, and how; by default all of it.
    again : str
        The command that makes this report.

    Raises
    ------
    RunnerError
        As :func:`table_of`.
    """
    target = Target.parse(choice.target) if choice.target else None
    curves = _curves(sweep, choice, target)
    found = _chosen(sweep, choice, target, curves)
    page = Page(inches(choice.width) if choice.width else 0.0, choice.pictures or ("png",))
    places = {number: i for i, number in enumerate(found.kept)}
    own = curves[curves["trial"].isin(places)]
    extras = sweep_figures(
        [sweep.trials[i] for i in found.kept],
        trials_table(found.rows, found.axes),
        own.assign(trial=own["trial"].map(places)),
        own=[way_of(row.axes) for row in found.rows],
        ways=[way_of(place) for place in sweep.places],
        compared=[column.name for column in found.table.columns if column.metric]
        if choice.columns
        else (),
        said=reader(choice),
        test=choice.test,
        page=page,
    )
    story = Searched.from_json(sweep.searched) if sweep.searched else None
    tuning: Lines = ()
    if story and not choice.is_chosen:
        search_figures(story, extras, page)
        tuning = story.lines()
        remarks = (*found.table.remarks, *story.remarks())
        caption = " ".join([found.table.caption, *story.remarks()])
        found = replace(found, table=replace(found.table, caption=caption, remarks=remarks))
    captions, missing = extras.captions, extras.told()
    shown = [(said, extras.files[path]) for path, said in captions.items()]
    worst = worst_table(found.cells)
    others = {"By the worst attack": worst} if worst else {}
    on_paper = _chosen(sweep, narrow(choice), target, curves).table
    extras.write("report.tex", lambda: latex(on_paper, sweep.name))
    extras.write(PAGE, lambda: html(sweep, found.table, shown, missing, again, tuning, others))
    for told in extras.told():
        _log.warning("report of %s: %s", line(sweep.name), told)
    files: dict[str, str | bytes] = {
        "report.md": document_markdown(sweep, found.table, captions, extras.told(), tuning, others),
        "report.csv": csv(found.cells),
        "trials.csv": csv(trials_table(found.rows, found.axes)),
        **({"worst_attack.csv": printed(worst, "csv", sweep.name)} if worst else {}),
        **extras.files,
    }
    return Report(found, files, others)


def _curves(sweep: "StoredSweep", choice: Choice, target: Target | None) -> pd.DataFrame:
    """Return the curves of the trials that are shown."""
    settings = [trial.params for trial in sweep.trials]
    kept = picked(choice, sweep.rows(), sweep.axes, settings)
    return trial_curves({i: sweep.trials[i] for i in kept}, target)


def _chosen(
    sweep: "StoredSweep",
    choice: Choice,
    target: Target | None,
    curves: pd.DataFrame | None,
) -> Chosen:
    rows = sweep.rows()
    if not any(row.metrics for row in rows):
        raise RunnerError(
            f"no trial of the sweep '{sweep.name}' has finished; run it first, then report it"
        )
    if target is not None and curves is not None:
        rows = [
            _with_target(row, curves[curves["trial"] == i], target) for i, row in enumerate(rows)
        ]
    if (epsilon := choice.epsilon) is not None:
        rows = [
            replace(row, metrics={**row.metrics, "acc_at_epsilon": within_epsilon(trial, epsilon)})
            if row.metrics
            else row
            for row, trial in zip(rows, sweep.trials, strict=True)
        ]
    settings = [trial.params for trial in sweep.trials]
    full = not choice.is_chosen
    found = chosen(choice, rows, sweep.axes, settings, sweep.absent, full)
    early = ended_early([sweep.trials[i] for i in found.kept])
    said = [*sweep.privacy(), *sweep.edited(), *([f"{early}."] if early else [])]
    if sweep.searching:
        said.insert(0, "NOT WHOLE: the search did not end; these are default settings.")
    table = replace(
        found.table,
        caption=" ".join([found.table.caption, *said]),
        remarks=(*found.table.remarks, *said),
    )
    return replace(found, table=table)


def _with_target(row: TrialRow, curve: pd.DataFrame, target: Target) -> TrialRow:
    if not row.metrics or curve.empty:
        return row
    return replace(row, metrics={**row.metrics, **to_target(curve, target)})
