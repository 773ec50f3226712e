"""Tables and figures over the trials of a sweep: mean and deviation over seeds per cell of its axes.

A trial is a row: its axes by short name, its seed, and its final metrics; a trial that failed has no metrics.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING, Any

import pandas as pd

from runner import plots

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

METRICS = {
    "client_acc": ("client accuracy (%)", 100.0, 1),
    "acc": ("global accuracy (%)", 100.0, 1),
    "ari": ("ARI", 1.0, 2),
    "wall_s": ("time (s)", 1.0, 1),
}
"""Metric -> heading, factor and decimals in a table that is read."""

_MISSING = "-"


def trials_frame(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per trial, axes of numbers as numbers, so that 10 comes after 2."""
    frame = pd.DataFrame([dict(row) for row in rows])
    for column in map(str, frame):
        if column not in METRICS:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            if numbers.notna().equals(frame[column].notna()):
                frame[column] = numbers if (numbers % 1).any() or numbers.isna().any() else numbers.astype(int)
    for metric in METRICS:
        if metric in frame:
            frame[metric] = frame[metric].astype(float)
    return frame


def results_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per cell of the sweep's axes.

    Parameters
    ----------
    rows : Iterable[Mapping[str, Any]]
        One per trial: axes, ``seed`` and the metrics of ``METRICS`` as far as the trial has them.

    Returns
    -------
    pd.DataFrame
        The axes, ``trials`` (that have results), ``failed``, and for each metric ``<metric>_mean`` and ``<metric>_std``
        (n - 1; missing for a single trial). Where one trial of a cell diverged to nan, so does the cell's mean.
    """
    frame = trials_frame(rows)
    metrics = [metric for metric in METRICS if metric in frame]
    axes = _axes(frame)
    done = frame[metrics].notna().any(axis=1)
    cells: list[dict[str, Any]] = []
    for place, part in frame.groupby(axes, sort=False, dropna=False) if axes else [((), frame)]:
        kept = part[done[part.index]]
        cell: dict[str, Any] = dict(zip(axes, place, strict=True))
        cell |= {"trials": len(kept), "failed": len(part) - len(kept)}
        for metric in metrics:
            cell[f"{metric}_mean"] = kept[metric].mean(skipna=False)
            cell[f"{metric}_std"] = kept[metric].std(skipna=False)
        cells.append(cell)
    return pd.DataFrame(cells)


def rich_table(table: pd.DataFrame, title: str = "") -> "Table":
    """Return a table of results for the terminal."""
    from rich.table import Table

    shown = Table(title=title or None, title_justify="left")
    headings, *lines = _texts(table)
    for heading in headings:
        words = heading in table and not pd.api.types.is_numeric_dtype(table[heading])
        shown.add_column(heading, justify="left" if words else "right")
    for line in lines:
        shown.add_row(*line)
    return shown


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table of results in Markdown."""
    headings, *lines = _texts(table)
    rule = ["---"] * len(headings)
    return "".join("| " + " | ".join(line) + " |\n" for line in (headings, rule, *lines))


def sweep_figures(rows: Iterable[Mapping[str, Any]]) -> "dict[str, Figure]":
    """Return a figure per metric against the number of clusters, per partitioning; none without that axis."""
    frame = trials_frame(rows)
    if "num_clusters" not in frame:
        return {}
    others = [axis for axis in _axes(frame) if axis != "num_clusters" and frame[axis].nunique() > 1]
    line = next((axis for axis in ("partition", *others) if axis in others), None)
    rest = [axis for axis in others if axis != line]
    panel = ", ".join(rest) if rest else None
    frame = frame[frame["num_clusters"].notna()]
    if panel is not None and panel not in frame:  # several axes left: a panel per combination of theirs
        frame[panel] = frame[rest].astype(str).agg(", ".join, axis=1)
    return {
        f"plots/{metric}_by_clusters.png": plots.axis_effect(frame, "num_clusters", metric, line, panel)
        for metric in ("client_acc", "acc", "ari")
        if metric in frame and frame[metric].notna().any()
    }


def sweep_files(rows: Sequence[Mapping[str, Any]]) -> "dict[str, str | Figure]":
    """Return what a finished sweep leaves: the table as Markdown and CSV, the trials as CSV, and figures."""
    table = results_table(rows)
    files: dict[str, str | Figure] = {
        "results.md": markdown_table(table),
        "results.csv": table.to_csv(index=False),
        "trials.csv": trials_frame(rows).to_csv(index=False),
    }
    return files | sweep_figures(rows)


def _axes(frame: pd.DataFrame) -> list[str]:
    return [str(column) for column in frame if column not in METRICS and column != "seed"]


def _texts(table: pd.DataFrame) -> list[list[str]]:
    """Return the lines of the table as it is read, headings first: ``91.2 ± 0.4``, per cents, no empty column."""
    texts: dict[str, list[str]] = {}
    for column in table:
        metric, _, kind = str(column).rpartition("_")
        if metric in METRICS and kind in ("mean", "std"):
            heading, factor, decimals = METRICS[metric]
            if kind == "mean" and table[column].notna().any():
                pairs = zip(table[column], table[f"{metric}_std"], strict=True)
                texts[heading] = [_number(mean * factor, std * factor, decimals) for mean, std in pairs]
        elif column != "failed" or table[column].any():
            texts[str(column)] = [_MISSING if pd.isna(value) else f"{value}" for value in table[column]]
    return [list(texts), *map(list, zip(*texts.values(), strict=True))]


def _number(mean: float, std: float, decimals: int) -> str:
    if isnan(mean):
        return _MISSING
    return f"{mean:.{decimals}f}" + ("" if isnan(std) else f" ± {std:.{decimals}f}")
