"""Tables and figures over the trials of a sweep: mean and deviation over seeds per cell of its axes.

A trial is a row: its axes by short name, its seed, and its final metrics; a trial that failed has no metrics.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from runner import report_text
from runner.config.section import axis_name
from runner.errors import RunnerError
from runner.stats import EXACT, LEVEL, TESTS, Test, clear_best, interval

if TYPE_CHECKING:
    from rich.table import Table

    from runner.tracking.read import StoredSweep, StoredTrial

METRICS = {
    "client_acc": ("client accuracy (%)", 100.0, 1),
    "client_test_acc": ("client test accuracy (%)", 100.0, 1),
    "acc": ("global accuracy (%)", 100.0, 1),
    "client_acc_p10": ("worst 10% (%)", 100.0, 1),
    "client_acc_min": ("worst client (%)", 100.0, 1),
    "client_acc_jain": ("Jain's index", 1.0, 3),
    "ari": ("ARI", 1.0, 2),
    "ami": ("AMI", 1.0, 2),
    "matched": ("matched (%)", 100.0, 1),
    "clusters": ("clusters found", 1.0, 1),
    "stable_since": ("stable since round", 1.0, 1),
    "clustering_s": ("clustering (s)", 1.0, 3),
    "handovers": ("handovers", 1.0, 1),
    "server_tenure": ("tenure (rounds)", 1.0, 1),
    "server_gini": ("servers' Gini", 1.0, 2),
    "server_regret": ("regret", 1.0, 3),
    "server_spearman": ("load-examples Spearman", 1.0, 2),
    "rounds_to_target": ("rounds to target", 1.0, 1),
    "mb_to_target": ("MB to target", 1.0, 1),
    "wall_s": ("time (s)", 1.0, 1),
}
"""Metric -> heading, factor and decimals in a table that is read."""

_MORE = ("client_acc_p10", "client_acc_min", "client_acc_jain", "ami", "matched", "clusters", "stable_since",
         "clustering_s")  # fmt: skip
"""Metrics that only a full report shows."""
_OF_SERVERS = ("handovers", "server_tenure", "server_gini", "server_regret", "server_spearman")
_SERVER_AXES = {f"server_{key}" for key in ("rule", "mode", "cpu_weight", "mem_weight", "node_weight", "ewma",
                                          "hysteresis", "min_tenure")}  # fmt: skip
_RANKED = ("client_acc", "acc", "ari")  # higher is better, and worth a mark
_TO_TARGET = ("rounds_to_target", "mb_to_target")
_PROBLEM = {"dataset", "partition", "shift", "alpha", "min_size", "groups", "angles", "shards_per_client",
            "classes_per_client", "num_clients", "max_train"}  # fmt: skip
"""Axes that make a problem; the other ones are ways to solve it, and only ways to solve the same one are compared."""

_CURVES = {"acc": ("3_clients/acc", "1_global/acc"), "loss": ("3_clients/loss", "1_global/loss"),
           "mb": ("4_comm/mb_total",)}  # fmt: skip
_MISSING = "-"


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
            return cls(key or "3_clients/acc", float(value))
        except ValueError:
            raise RunnerError(
                f"--target {word} is no target; give a share of the client accuracy (0.9) or METRIC=VALUE"
            ) from None


def trials_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per trial, axes of numbers as numbers, so that 10 comes after 2."""
    frame = pd.DataFrame([dict(row) for row in rows])
    if _SERVER_AXES.isdisjoint(frame):  # the servers' numbers are shown where settings of theirs are compared
        frame = frame.drop(columns=[metric for metric in _OF_SERVERS if metric in frame])
    for column in map(str, frame):
        if column not in METRICS:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            if numbers.notna().equals(frame[column].notna()):
                frame[column] = numbers if (numbers % 1).any() or numbers.isna().any() else numbers.astype(int)
    for metric in METRICS:
        if metric in frame:
            frame[metric] = frame[metric].astype(float)
    return frame


def results_table(rows: Iterable[Mapping[str, Any]], test: Test = "t") -> pd.DataFrame:
    """Return one row per cell of the sweep's axes.

    Parameters
    ----------
    rows : Iterable[Mapping[str, Any]]
        One per trial: axes, ``seed`` and the metrics of ``METRICS`` as far as the trial has them.
    test : str
        Paired test over the seeds that says whether a cell is the best: see :func:`runner.stats.clear_best`.

    Returns
    -------
    pd.DataFrame
        The axes, ``trials`` (that have results), ``failed``, and for each metric ``<metric>_mean``, ``<metric>_std``
        (n - 1; missing for a single trial), ``<metric>_ci`` (half the width of the 95% t interval) and, where higher is
        better, ``<metric>_best``. Where one trial of a cell diverged to nan, so does the cell's mean; the means to a
        target are those of the ``reached`` trials. ``recovered`` is the share of trials with ARI = 1.
    """
    frame = trials_frame(rows)
    metrics = [metric for metric in METRICS if metric in frame]
    axes = _axes(frame)
    done = frame[metrics].notna().any(axis=1)
    cells: list[dict[str, Any]] = []
    seeds: list[pd.DataFrame] = []
    for place, part in frame.groupby(axes, sort=False, dropna=False) if axes else [((), frame)]:
        kept = part[done[part.index]]
        cell: dict[str, Any] = dict(zip(axes, place, strict=True))
        cell |= {"trials": len(kept), "failed": len(part) - len(kept)}
        for metric in metrics:
            values = kept[metric].dropna() if metric in _TO_TARGET else kept[metric]
            cell[f"{metric}_mean"] = values.mean(skipna=False)
            cell[f"{metric}_std"] = values.std(skipna=False)
            cell[f"{metric}_ci"] = interval(values.to_numpy())
        if "ari" in metrics:
            cell["recovered"] = (kept["ari"] > EXACT).mean() if kept["ari"].notna().any() else float("nan")
        if "rounds_to_target" in metrics:
            cell["reached"] = int(kept["rounds_to_target"].notna().sum())
        cells.append(cell)
        seeds.append(kept)
    table = pd.DataFrame(cells)
    problem = [axis for axis in axes if axis in _PROBLEM]
    for metric in set(_RANKED).intersection(metrics):
        table[f"{metric}_best"] = False
        for _, block in table.groupby(problem, dropna=False) if problem else [((), table)]:
            best = clear_best([_by_seed(seeds[i], metric) for i in block.index], test)
            if best is not None:
                table.loc[block.index[best], f"{metric}_best"] = True
    return table


def rich_table(table: pd.DataFrame, title: str = "") -> "Table":
    """Return a table of results for the terminal."""
    lines = texts(table)
    shown = rich_lines(lines, title)
    for heading, column in zip(lines[0], shown.columns, strict=True):
        if heading not in table or pd.api.types.is_numeric_dtype(table[heading]):
            column.justify = "right"
    return shown


def rich_lines(lines: Sequence[Sequence[str]], title: str) -> "Table":
    """Return a table of texts, headings first, for the terminal."""
    from rich.table import Table

    shown = Table(*lines[0], title=title or None, title_justify="left")
    for line in lines[1:]:
        shown.add_row(*line)
    return shown


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of results in Markdown."""
    return report_text.markdown(texts(table))


def report(sweep: "StoredSweep", target: Target | None = None, test: Test = "t") -> dict[str, str | bytes]:
    """Return a sweep's report, by file name: tables as Markdown, CSV, LaTeX and HTML, and the figures as PNG.

    Raises
    ------
    RunnerError
        No trial of the sweep has finished.
    """
    from runner.figures.report import sweep_figures

    rows = sweep.rows()
    if not any("wall_s" in row for row in rows):
        raise RunnerError(f"no trial of the sweep '{sweep.name}' has finished; run it first, then report it")
    curves = trial_curves(sweep, target)
    if target is not None:
        for i, row in enumerate(rows):
            row |= to_target(curves[curves["trial"] == i], target)
    rows = [{k: v for k, v in row.items() if k in METRICS or k in sweep.axes} for row in rows]
    table = results_table(rows, test)
    figures = sweep_figures(sweep, trials_frame(rows), with_labels(curves, trials_frame(rows)))
    caption = _caption(table, target, test)
    lines = {mark: texts(table, full=True, bold=mark) for mark in ("**{}**", "\\textbf{{{}}}", "<b>{}</b>")}
    return {
        "report.md": report_text.document_markdown(sweep, lines["**{}**"], caption, list(figures)),
        "report.csv": table.to_csv(index=False),
        "report.tex": report_text.latex(lines["\\textbf{{{}}}"], caption, sweep.name),
        "report.html": report_text.html(sweep, lines["<b>{}</b>"], caption, figures),
        "trials.csv": trials_frame(rows).to_csv(index=False),
        **{f"plots/{name}.png": png for name, png in figures.items()},
    }


def comparison(trials: "Sequence[StoredTrial]") -> "Table":
    """Return trials side by side, a column each: the settings in which they differ, then how each ended."""
    from rich.table import Table

    shown = Table(title=None)
    shown.add_column("")
    for trial in trials:
        shown.add_column(f"{trial.name}\n{trial.run_id[:8]}", justify="right")
    every = [trial.params for trial in trials]
    short = {key for params in every for key in params if "." not in key}
    for key in sorted(set().union(*every)):
        values = [params.get(key, _MISSING) for params in every]
        if len(set(values)) > 1 and not ("." in key and axis_name(key) in short):
            shown.add_row(key, *values)
    shown.add_section()
    shown.add_row("status", *(trial.status for trial in trials))
    for key in dict.fromkeys(key for trial in trials for key in trial.final):
        shown.add_row(key, *(f"{t.final[key]:.4g}" if key in t.final else _MISSING for t in trials))
    return shown


def best_cell(sweep: "StoredSweep", metric: str, lowest: bool = False) -> str:
    """Return the cell with the best mean of a final metric, its interval, and the command of its best trial.

    Raises
    ------
    RunnerError
        No trial has that metric.
    """
    known = sorted({name for trial in sweep.trials for name in trial.final})
    trials = [trial for trial in sweep.trials if metric in trial.final and trial.status == "FINISHED"]
    if not trials:
        raise RunnerError(f"--metric {metric} is none that '{sweep.name}' has; its final metrics: {', '.join(known)}")
    sign = -1.0 if lowest else 1.0
    cells: dict[str, list[StoredTrial]] = {}
    for trial in trials:
        place = " ".join(f"{axis}={trial.params.get(axis)}" for axis in sweep.axes if axis != "seed")
        cells.setdefault(place or "all trials", []).append(trial)

    def value(some: "Sequence[StoredTrial]") -> float:
        mean = float(np.mean([trial.final[metric] for trial in some]))
        return -inf if isnan(mean) else sign * mean  # what diverged is the worst

    place, chosen = max(cells.items(), key=lambda item: value(item[1]))
    values = np.array([trial.final[metric] for trial in chosen])
    half = interval(values)
    width = "" if isnan(half) else f" [{values.mean() - half:.4f}, {values.mean() + half:.4f}]"
    top = max(chosen, key=lambda trial: value([trial]))
    return (
        f"{place}\n{metric} {values.mean():.4f}{width} (mean [95% interval] of {len(values)} trials)\n"
        f"best trial: {metric} {top.final[metric]:.4f}, run {top.run_id}\n{top.command}"
    )


def trial_curves(sweep: "StoredSweep", target: Target | None = None) -> pd.DataFrame:
    """Return a row per trial and round: ``trial`` (its place in the sweep), ``round``, ``acc``, ``loss``, ``mb``, and
    the target's metric as ``target``. Accuracy and loss are the clients' mean, else the global model's.
    """
    parts = []
    for i, trial in enumerate(sweep.trials):
        keys = [key for found in _CURVES.values() for key in found]
        history = trial.history(list(dict.fromkeys([*keys, *([target.key] if target else [])])))
        part = pd.DataFrame({"trial": i, "round": history["round"]})
        for name, options in _CURVES.items():
            there = next((key for key in options if key in history), None)
            part[name] = history[there] if there else float("nan")
        part["mb"] = part["mb"].ffill()
        if target is not None:
            part["target"] = history.get(target.key, float("nan"))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def to_target(curve: pd.DataFrame, target: Target) -> dict[str, float]:
    """Return the rounds and the client traffic (MB) until a trial first reached the target; nan if it did not."""
    there = curve[curve["target"] >= target.value]
    if there.empty:
        return dict.fromkeys(_TO_TARGET, float("nan"))
    first = there.iloc[0]
    return {"rounds_to_target": float(first["round"]), "mb_to_target": float(first["mb"])}


def with_labels(rows: pd.DataFrame, frame: pd.DataFrame) -> pd.DataFrame:
    """Add ``panel`` (the problem) and ``line`` (the way to solve it) to rows that name their ``trial``."""
    axes = [axis for axis in _axes(frame) if frame[axis].nunique(dropna=False) > 1]

    def label(kind: bool) -> pd.Series:
        chosen = [axis for axis in axes if (axis in _PROBLEM) == kind]
        return frame.apply(lambda row: ", ".join(_label(axis, row[axis]) for axis in chosen) or "all trials", axis=1)

    return rows.join(pd.DataFrame({"panel": label(True), "line": label(False)}), on="trial")


def _label(axis: str, value: Any) -> str:
    if axis == "num_clusters":
        return f"{value} cluster{'' if value == 1 else 's'}"
    if value == "none":
        return f"no {axis}"
    return str(value) if isinstance(value, str) else f"{axis}={value}"


def _by_seed(trials: pd.DataFrame, metric: str) -> dict[object, float]:
    """Return a cell's values by seed, what diverged left out."""
    keys = trials["seed"] if "seed" in trials else range(len(trials))
    return {seed: value for seed, value in zip(keys, trials[metric], strict=True) if not isnan(value)}


def _caption(table: pd.DataFrame, target: Target | None, test: Test) -> str:
    words = ["Mean ± standard deviation [95% confidence interval of the mean, Student's t] over the seeds."]
    problem = [axis for axis in table if axis in _PROBLEM]
    same = f" of the same {', '.join(map(str, problem))}" if problem else ""
    if any(str(column).endswith("_best") and table[column].any() for column in table):
        words.append(f"Bold: better than each other row{same} ({TESTS[test]} over the seeds, each p < {LEVEL}).")
    else:
        words.append(f"No row is better than each other row{same} ({TESTS[test]} over the seeds, p < {LEVEL}).")
    if "recovered" in table:
        words.append("Recovered: trials whose clusters are the known groups (ARI = 1).")
    if target is not None:
        words.append(f"Target: {target.key} >= {target.value:g}; means over the trials that reached it.")
    return " ".join(words)


def _axes(frame: pd.DataFrame) -> list[str]:
    return [str(column) for column in frame if column not in METRICS and column != "seed"]


def texts(table: pd.DataFrame, full: bool = False, bold: str = "{}") -> list[list[str]]:
    """Return the lines of the table as it is read, headings first: ``91.2 ± 0.4``, per cents, no empty column.

    With ``full`` the intervals, the recovery rate and the marks (``bold``, a format) are there too.
    """
    found: dict[str, list[str]] = {}
    for column in map(str, table):
        metric, _, kind = column.rpartition("_")
        if metric in METRICS and kind in ("mean", "std", "ci", "best"):
            heading, factor, decimals = METRICS[metric]
            if kind == "mean" and table[column].notna().any() and (full or metric not in _MORE):
                none = [float("nan")] * len(table)
                marks = table.get(f"{metric}_best", [False] * len(table)) if full else [False] * len(table)
                widths = table.get(f"{metric}_ci", none) if full and metric not in _TO_TARGET else none
                cells = zip(table[column], table[f"{metric}_std"], widths, marks, strict=True)
                found[heading] = [
                    _number(m * factor, s * factor, w * factor, decimals, bold if best else "{}")
                    for m, s, w, best in cells
                ]
        elif column == "recovered":
            if full and table[column].notna().any():
                found["recovered (%)"] = [_MISSING if isnan(v) else f"{v * 100:.0f}" for v in table[column]]
        elif column != "failed" or table[column].any():
            found[column] = [_MISSING if pd.isna(value) else f"{value}" for value in table[column]]
    return [list(found), *map(list, zip(*found.values(), strict=True))]


def _number(mean: float, std: float, half: float, decimals: int, bold: str) -> str:
    if isnan(mean):
        return _MISSING
    number = bold.format(f"{mean:.{decimals}f}") + ("" if isnan(std) else f" ± {std:.{decimals}f}")
    return number + ("" if isnan(half) else f" [{mean - half:.{decimals}f}, {mean + half:.{decimals}f}]")
