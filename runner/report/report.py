"""Tables and figures over a sweep's trials: mean and deviation over seeds per cell of its axes.

A trial is a row: its axes by full key, its seed among them, and its final metrics;
one that failed has none.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from csv import QUOTE_NONNUMERIC
from dataclasses import dataclass, replace
from math import isnan, nan
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsweep import escape
from fedsweep.catalog import CATALOG, Metric
from fedsweep.config import TrialConfig
from fedsweep.config.section import short_names
from fedsweep.errors import RunnerError, unknown
from fedsweep.escape import storable
from fedsweep.records import TrialRow
from fedsweep.report import text as report_text
from fedsweep.report.rows import Trials
from fedsweep.report.stats import EXACT, LEAST, LEVEL, TESTS, Test, clear_best, interval
from fedsweep.report.text import Lines, Marked

if TYPE_CHECKING:
    from rich.table import Table

    from fedsweep.tracking.read import StoredSweep, StoredTrial

_log = logging.getLogger("fedsweep.report")

_SERVER = "strategy.server."  # settings of theirs
_MB = "4_comm/mb_total"
_MISSING = "-"
_SEED = "seed"


@dataclass(frozen=True)
class Target:
    """What a trial should reach: a metric as it is logged, and a value."""

    key: str
    value: float

    @classmethod
    def parse(cls, word: str) -> "Target":
        """Read ``0.9`` (of the mean client accuracy) or ``1_global/acc=0.9``."""
        key, _, value = word.rpartition("=")
        try:
            target = cls(key or "3_clients/acc", float(value))
        except ValueError:
            raise RunnerError(
                f"--target {word} is no target; give a share of the client accuracy (0.9) "
                "or METRIC=VALUE"
            ) from None
        CATALOG[target.key]  # refuses one that nobody declared
        return target

    @property
    def sign(self) -> float:
        """Times the metric, more is better."""
        return CATALOG[self.key].sign

    def __str__(self) -> str:
        return f"{self.key} {'<=' if self.sign < 0 else '>='} {self.value:g}"


@dataclass(frozen=True)
class Cells:
    """A sweep's table: a row per cell of its axes but the seed, in the grid's order.

    Parameters
    ----------
    axes : pd.DataFrame
        The place of each cell, as in :class:`Trials`.
    numbers : pd.DataFrame
        ``trials`` (that have results), ``failed``, and for each metric ``<metric>_mean``, ``_std``
        (n - 1; missing for a single trial), ``_ci`` (half the width of the 95% t interval; missing
        for fewer than three), ``_low`` and ``_high`` (of the trials), ``_n`` (trials that have it),
        ``_nan`` (that diverged: so does the mean) and, where rows are ranked, ``_best``. Means to a
        target are those of the ``reached`` trials. ``recovered`` is the share with ARI = 1.
    """

    axes: pd.DataFrame
    numbers: pd.DataFrame

    def frame(self) -> pd.DataFrame:
        """Return both tables side by side."""
        return pd.concat([self.axes, self.numbers], axis=1)


def trials_table(rows: Sequence[TrialRow], axes: Sequence[str] | None = None) -> Trials:
    """Return a sweep's trials as a table; ``axes`` orders the columns, else the rows do."""
    shown = _shown_metrics(rows)
    metrics = {metric: [float(row.metrics.get(metric, nan)) for row in rows] for metric in shown}
    return Trials(
        _places([row.axes for row in rows], _all_axes(rows, axes)),
        pd.DataFrame(metrics, index=range(len(rows))),
        pd.Series([bool(row.metrics) for row in rows], dtype=bool),
    )


def results_table(
    rows: Sequence[TrialRow], test: Test = "t", axes: Sequence[str] | None = None
) -> Cells:
    """Return one row per cell of the sweep's axes.

    Parameters
    ----------
    rows : sequence of TrialRow
        One per trial.
    test : str
        Paired test over the seeds that says whether a cell is the best: see
        :func:`fedsweep.report.stats.clear_best`.
    axes : sequence of str, optional
        All axes of the sweep in its order.
    """
    keys = [key for key in _all_axes(rows, axes) if key != _SEED]
    cells: dict[tuple[str | None, ...], list[TrialRow]] = {}
    for row in rows:
        cells.setdefault(tuple(row.axes.get(key) for key in keys), []).append(row)
    metrics = _shown_metrics(rows)
    numbers = pd.DataFrame([_cell(part, metrics) for part in cells.values()])
    blocks = _blocks(keys, cells)
    for metric in (metric for metric in CATALOG.ranked if metric in metrics):
        seeds = [_by_seed(part, metric) for part in cells.values()]
        marked = set()
        for block in blocks:
            best = clear_best([seeds[i] for i in block], test)
            if best is not None:
                marked.add(block[best])
        numbers[f"{metric}_best"] = [i in marked for i in range(len(cells))]
    places = [
        {key: value for key, value in zip(keys, place, strict=True) if value is not None}
        for place in cells
    ]
    return Cells(_places(places, keys), numbers)


def _blocks(keys: Sequence[str], places: Iterable[Sequence[str | None]]) -> list[list[int]]:
    """Return the numbers of the cells of each problem: only these are compared."""
    blocks: dict[tuple[str | None, ...], list[int]] = {}
    for i, place in enumerate(places):
        pairs = zip(keys, place, strict=True)
        problem = tuple(value for key, value in pairs if TrialConfig.is_problem(key))
        blocks.setdefault(problem, []).append(i)
    return list(blocks.values())


def _cell(part: Sequence[TrialRow], metrics: Sequence[str]) -> dict[str, object]:
    """Return the numbers of a cell."""
    kept = [row.metrics for row in part if row.metrics]
    cell: dict[str, object] = {"trials": len(kept), "failed": len(part) - len(kept)}
    for metric in metrics:
        values = np.array([float(final[metric]) for final in kept if metric in final])
        if CATALOG.final(metric).over_seeds == "reached":
            values = values[~np.isnan(values)]
        cell[f"{metric}_mean"] = values.mean() if len(values) else nan
        cell[f"{metric}_std"] = values.std(ddof=1) if len(values) > 1 else nan
        cell[f"{metric}_ci"] = interval(values)
        cell[f"{metric}_low"] = values.min() if len(values) else nan
        cell[f"{metric}_high"] = values.max() if len(values) else nan
        cell[f"{metric}_n"] = len(values)
        cell[f"{metric}_nan"] = int(np.isnan(values).sum())
    if "ari" in metrics:
        known = [final["ari"] > EXACT for final in kept if "ari" in final]  # nan is no recovery
        cell["recovered"] = np.mean(known) if known else nan
    if "rounds_to_target" in metrics:
        cell["reached"] = cell["rounds_to_target_n"]
    return cell


def rich_table(cells: Cells, title: str = "") -> "Table":
    """Return a table of results for the terminal."""
    shown = rich_lines(texts(cells), title)
    words = [not pd.api.types.is_numeric_dtype(cells.axes[key]) for key in cells.axes]
    for i, column in enumerate(shown.columns):
        if i >= len(words) or not words[i]:
            column.justify = "right"
    return shown


def rich_lines(lines: Lines, title: str) -> "Table":
    """Return a table of texts, headings first, for the terminal."""
    from rich.table import Table
    from rich.text import Text

    def cells(line: Sequence[str | Marked]) -> list[Text]:
        """Keep rich from reading what it is to show."""
        parts = [
            (cell.strong, cell.rest) if isinstance(cell, Marked) else ("", cell) for cell in line
        ]
        return [
            Text.assemble((escape.line(strong), "bold"), escape.line(rest))
            for strong, rest in parts
        ]

    shown = Table(title=Text(escape.line(title)) if title else None, title_justify="left")
    for heading in cells(lines[0]):
        shown.add_column(heading, overflow="fold")
    for line in lines[1:]:
        shown.add_row(*cells(line))
    return shown


def markdown_table(cells: Cells) -> str:
    """Return a table of results in Markdown."""
    return report_text.markdown(texts(cells))


def report(
    sweep: "StoredSweep", target: Target | None = None, test: Test = "t"
) -> dict[str, str | bytes]:
    """Return a report by file name: tables as Markdown, CSV, LaTeX, HTML, and figures as PNG.

    Raises
    ------
    RunnerError
        No trial of the sweep has finished.
    """
    from fedsweep.report.figures import sweep_figures

    rows = sweep.rows()
    if not any(row.metrics for row in rows):
        raise RunnerError(
            f"no trial of the sweep '{sweep.name}' has finished; run it first, then report it"
        )
    curves = trial_curves(sweep, target)
    if target is not None:
        rows = [
            replace(row, metrics={**row.metrics, **to_target(curves[curves["trial"] == i], target)})
            if row.metrics
            else row
            for i, row in enumerate(rows)
        ]
    cells = results_table(rows, test, sweep.axes)
    trials = trials_table(rows, sweep.axes)
    extras = sweep_figures(sweep, trials, with_labels(curves, trials))
    figures, missing = dict(extras.files), extras.told()
    caption = " ".join([_caption(cells, target, test, sweep.absent), *sweep.edited()])
    lines = texts(cells, full=True)
    extras.write("report.tex", lambda: report_text.latex(lines, caption, sweep.name))
    extras.write("report.html", lambda: report_text.html(sweep, lines, caption, figures, missing))
    for told in extras.told():
        _log.warning("report of %s: %s", escape.line(sweep.name), told)
    return {
        "report.md": report_text.document_markdown(
            sweep, lines, caption, list(figures), extras.told()
        ),
        "report.csv": csv(cells),
        "trials.csv": csv(trials),
        **extras.files,
    }


def csv(table: Cells | Trials) -> str:
    """Return a table as CSV; texts are quoted: a lone carriage return in one would end its row."""
    return str(table.frame().to_csv(index=False, quoting=QUOTE_NONNUMERIC))


def comparison(trials: "Sequence[StoredTrial]") -> "Table":
    """Return trials side by side, a column each: settings in which they differ, and their ends."""
    names = ["", *(f"{trial.name} {trial.run_id[:8]}" for trial in trials)]
    settings: list[list[str]] = []
    every = [trial.params for trial in trials]
    for key in sorted(set().union(*every)):
        values = [params.get(key, _MISSING) for params in every]
        group = key.removesuffix(".name")  # its option, told twice where it is an axis
        told = group != key and values == [params.get(group) for params in every]
        if len(set(values)) > 1 and not told:
            settings.append([key, *values])
    ends = [["status", *(trial.status for trial in trials)]]
    for key in dict.fromkeys(key for trial in trials for key in trial.final):
        ends.append([key, *(f"{t.final[key]:.4g}" if key in t.final else _MISSING for t in trials)])
    shown = rich_lines([names, *settings, *ends], "")
    if settings:
        shown.rows[len(settings) - 1].end_section = True
    for column in shown.columns[1:]:
        column.justify = "right"
    return shown


def best_cell(sweep: "StoredSweep", metric: str, lowest: bool = False) -> str:
    """Return the cell of a final metric's best mean, its interval, its best trial's command.

    The best is the highest, unless the metric is declared to be better the lower, or ``lowest``.

    Raises
    ------
    RunnerError
        No trial has that metric.
    """
    known = sorted({name for trial in sweep.trials for name in trial.final})
    trials = [
        trial for trial in sweep.trials if metric in trial.final and trial.status == "FINISHED"
    ]
    if not trials:
        raise RunnerError(
            f"--metric: {unknown('metric', metric, known)} These are what '{sweep.name}' has."
        )
    sign = -1.0 if lowest else CATALOG.final(metric).sign
    places = dict(zip((trial.run_id for trial in sweep.trials), sweep.places, strict=True))
    cells: dict[str, list[StoredTrial]] = {}
    for trial in trials:
        place = " ".join(
            f"{axis}={value}" for axis, value in places[trial.run_id].items() if axis != _SEED
        )
        cells.setdefault(place or "all trials", []).append(trial)

    def rank(values: Sequence[float]) -> float:
        """Put what diverged last."""
        return -np.inf if np.isnan(values).any() else sign * float(np.mean(values))

    place, chosen = max(
        cells.items(), key=lambda item: rank([trial.final[metric] for trial in item[1]])
    )
    values = np.array([trial.final[metric] for trial in chosen])
    lost = sum(isnan(trial.final[metric]) for trial in trials)
    last = (
        f"{lost} of the sweep's trials diverged: their {metric} is nan, and their cells come last"
    )
    diverged = [last] * bool(lost)
    top = max(chosen, key=lambda trial: rank([trial.final[metric]]))
    told = [
        place,
        f"{metric} {values.mean():.4f} {_spread(values)}",
        *diverged,
        f"best trial: {metric} {top.final[metric]:.4f}, run {top.run_id}",
        top.command,
    ]
    return "\n".join(map(escape.line, told))


def _spread(values: np.ndarray) -> str:
    """Return a mean's interval, in brackets, or what there is in its place."""
    half = interval(values)
    if not isnan(half):
        ends = f"[{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
        return f"{ends} (mean [95% interval] of {len(values)} trials)"
    if len(values) > 1:
        return f"(mean of {len(values)} trials: {values.min():.4f} to {values.max():.4f})"
    return "(one trial)"


def trial_curves(sweep: "StoredSweep", target: Target | None = None) -> pd.DataFrame:
    """Return a row per trial and round: ``trial`` (its place in the sweep), ``round``, ``mb``, the
    catalog's curves by their names (``acc``, ``loss``), and the target's metric as ``target``.

    A curve is the first of its metrics that the trial has: the clients' mean, else the global
    model's. It is missing where nothing was evaluated, and ``acc_nan``, ``loss_nan`` say where it
    was logged as NaN.
    """
    parts = []
    curves = {name: [metric.key for metric in found] for name, found in CATALOG.curves.items()}
    curves["mb"] = [_MB]
    for i, trial in enumerate(sweep.trials):
        keys = [key for found in curves.values() for key in found]
        wanted = {*keys, *([target.key] if target else [])}
        histories = {key: trial.history([key]) for key in wanted}
        logged = {
            key: table.set_index("round")[key] for key, table in histories.items() if key in table
        }
        rounds = sorted({number for values in logged.values() for number in values.index})
        part = pd.DataFrame({"trial": i, "round": rounds}, index=rounds)
        for name, options in curves.items():
            values = next((logged[key] for key in options if key in logged), pd.Series(dtype=float))
            part[name] = values
            part[f"{name}_nan"] = part["round"].isin(values.index[values.isna()])
        part["mb"] = part["mb"].ffill()
        if target is not None:
            part["target"] = logged.get(target.key, nan)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def to_target(curve: pd.DataFrame, target: Target) -> dict[str, float]:
    """Return the rounds and the client traffic (MB) until a trial first reached the target;
    nan if it did not.
    """
    there = curve[target.sign * curve["target"] >= target.sign * target.value]
    rounds, mb = (nan, nan) if there.empty else there[["round", "mb"]].iloc[0]
    return {"rounds_to_target": float(rounds), "mb_to_target": float(mb)}


def with_labels(rows: pd.DataFrame, trials: Trials) -> pd.DataFrame:
    """Add ``panel`` (the problem) and ``line`` (the way to solve it) to rows with a ``trial``."""
    axes = [
        key
        for key in map(str, trials.axes)
        if key != _SEED and trials.axes[key].nunique(dropna=False) > 1
    ]

    def label(kind: bool) -> list[str]:
        chosen = [key for key in axes if TrialConfig.is_problem(key) == kind]
        places = trials.axes[chosen].to_dict("records")
        told = (
            [_label(trials.names[str(key)], value) for key, value in place.items()]
            for place in places
        )
        return [", ".join(filter(None, words)) or "all trials" for words in told]

    return rows.join(
        pd.DataFrame({"panel": label(True), "line": label(False)}, index=trials.axes.index),
        on="trial",
    )


def _label(name: str, value: str | float | None) -> str:
    """Return a setting as figures show it; nothing where it does not apply."""
    if pd.isna(value):
        return ""
    if name == "num_clusters":
        return f"{value} cluster{'' if value == 1 else 's'}"
    if value == "none":
        return f"no {name}"
    return str(value) if isinstance(value, str) else f"{name}={value}"


def _by_seed(part: Sequence[TrialRow], metric: str) -> dict[object, float]:
    """Return a cell's values by seed, more is better; a trial that has none is left out."""
    sign = CATALOG.final(metric).sign
    return {
        row.axes.get(_SEED): sign * row.metrics[metric] for row in part if metric in row.metrics
    }


def _shown_metrics(rows: Sequence[TrialRow]) -> list[str]:
    """Return the metrics that some trial has; the servers' where their settings are compared."""
    servers = any(key.startswith(_SERVER) for row in rows for key in row.axes)
    there = {metric for row in rows for metric in row.metrics}
    return [
        metric
        for metric in CATALOG.tabled
        if metric in there and (servers or CATALOG.final(metric).shown != "servers")
    ]


def _all_axes(rows: Sequence[TrialRow], axes: Sequence[str] | None) -> list[str]:
    return (
        list(axes)
        if axes is not None
        else list(dict.fromkeys(key for row in rows for key in row.axes))
    )


def _places(places: Sequence[Mapping[str, str]], keys: Sequence[str]) -> pd.DataFrame:
    """Return a row per place; a column is numbers where no two texts are one number."""
    values = {
        key: [storable(place[key]) if key in place else None for place in places] for key in keys
    }
    frame = pd.DataFrame(values, index=range(len(places)))
    for key in keys:
        numbers = pd.to_numeric(frame[key], errors="coerce")
        if numbers.notna().equals(frame[key].notna()) and numbers.nunique() == frame[key].nunique():
            whole = not (numbers % 1).any() and numbers.abs().max() < 2**53
            frame[key] = numbers.astype("Int64") if whole else numbers
    return frame


def _caption(cells: Cells, target: Target | None, test: Test, absent: int) -> str:
    words = [
        "Mean ± standard deviation [95% confidence interval of the mean, Student's t] over the "
        "seeds."
    ]
    if (cells.numbers["trials"] == LEAST - 1).any():
        words.append(f"Of fewer than {LEAST} trials: (lowest to highest).")
    names = short_names([*cells.axes, _SEED])
    problem = [names[key] for key in map(str, cells.axes) if TrialConfig.is_problem(key)]
    same = f" of the same {', '.join(problem)}" if problem else ""
    rule = (
        f"{TESTS[test]} over at least {LEAST} seeds, the sign test where all differences are the "
        f"same; p < {LEVEL}, corrected for the number of rows by Holm"
    )
    if any(
        str(column).endswith("_best") and cells.numbers[column].any() for column in cells.numbers
    ):
        words.append(f"Bold: better than each other row{same} ({rule}).")
    else:
        words.append(f"No row is better than each other row{same} ({rule}).")
    if any(
        str(column).endswith("_nan") and cells.numbers[column].any() for column in cells.numbers
    ):
        words.append("nan (k of n): k of a cell's n trials diverged.")
    if "recovered" in cells.numbers:
        words.append("Recovered: trials whose clusters are the known groups (ARI = 1).")
    if target is not None:
        words.append(f"Target: {target}; means over the trials that reached it.")
    if absent:
        words.append(f"NOT WHOLE: {absent} trials of the sweep are not in the store.")
    return " ".join(words)


def texts(cells: Cells, full: bool = False) -> list[list[str | Marked]]:
    """Return the table's lines as they are read, headings first: ``91.2 ± 0.4``, per cents.

    With ``full`` the intervals, the recovery rate and the marks of the best are there too.
    """
    names, numbers = short_names(map(str, cells.axes)), cells.numbers
    columns: list[tuple[str, Sequence[str | Marked]]] = [
        (name, [_MISSING if pd.isna(value) else f"{value}" for value in cells.axes[key]])
        for key, name in names.items()
    ]
    for column in map(str, numbers):
        metric = column.removesuffix("_mean")
        if column in ("trials", "reached") or (column == "failed" and numbers[column].any()):
            columns.append((column, [str(count) for count in numbers[column]]))
        elif column == "recovered" and full and numbers[column].notna().any():
            shares = [
                _MISSING if isnan(share) else f"{share * 100:.0f}" for share in numbers[column]
            ]
            columns.append(("recovered (%)", shares))
        elif column != metric and numbers[f"{metric}_n"].any():
            told = CATALOG.final(metric)
            if full or told.shown != "full":
                lines = numbers.to_dict("records")
                columns.append((told.heading, [_number(told, line, full) for line in lines]))
    headings, *rest = zip(*[(heading, *lines) for heading, lines in columns], strict=True)
    return [list(headings), *map(list, rest)]


def _number(metric: Metric, line: Mapping[Any, Any], full: bool) -> str | Marked:
    """Return a cell of the table that is read."""
    name, told = metric.final, metric.told
    count, diverged = line[f"{name}_n"], line[f"{name}_nan"]
    if not count:
        return _MISSING
    if diverged:
        return f"nan ({diverged} of {count})"
    mean, std, half = (line[f"{name}_{kind}"] for kind in ("mean", "std", "ci"))
    rest = "" if isnan(std) else f" ± {told(std)}"
    whole = metric.over_seeds == "all"
    if full and whole:
        if not isnan(half):
            rest += f" [{told(mean - half)}, {told(mean + half)}]"
        elif count > 1:
            rest += f" ({told(line[f'{name}_low'])} to {told(line[f'{name}_high'])})"
    if count < line["trials"] and whole:
        rest += f" ({count} of {line['trials']})"
    return Marked(told(mean), rest) if full and line.get(f"{name}_best") else told(mean) + rest
