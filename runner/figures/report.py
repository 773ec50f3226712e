"""The figures of a report, from a sweep in the tracking store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from runner.figures import sweep as sweeps
from runner.figures import trial as trials
from runner.figures.canvas import to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from runner.tracking.read import StoredSweep, StoredTrial


def sweep_figures(sweep: "StoredSweep", frame: pd.DataFrame, curves: pd.DataFrame) -> dict[str, bytes]:
    """Return the figures as PNG, by name.

    Parameters
    ----------
    sweep : StoredSweep
        Whose tables are read.
    frame : pd.DataFrame
        A row per trial, in the sweep's order: axes and final metrics.
    curves : pd.DataFrame
        A row per trial and round: ``trial``, ``panel``, ``line``, ``round``, ``mb``, ``acc``, ``loss``.
    """
    figures: dict[str, Figure] = {}
    curves = curves[curves["trial"].isin(frame.index[frame["wall_s"].notna()])]
    for value, label in (("acc", "mean client accuracy (%)"), ("loss", "mean client loss (nats)")):
        for x, axis in (("round", "rounds"), ("mb", "megabytes")):
            if (curves[value].notna() & curves[x].notna()).any():
                figures[f"{value}_over_{axis}"] = sweeps.over(curves, x, value, label)
    figures |= cluster_effects(frame, sweep.axes)
    labels = curves.drop_duplicates("trial").set_index("trial")[["panel", "line"]]
    clients = {i: table for i in labels.index if (table := sweep.trials[i].table("clients")) is not None}
    final = [
        pd.DataFrame({"acc": table.loc[table["round"] == table["round"].max(), "eval_acc"], **labels.loc[i]})
        for i, table in clients.items()
    ]
    if final and (spread := pd.concat(final))["acc"].notna().any():
        figures["client_accuracy"] = sweeps.client_distributions(spread)
    splits = _splits(sweep, frame)
    if splits:
        figures["label_distributions"] = sweeps.label_distributions(splits)
    shown = _shown(sweep, frame)
    if shown is not None:
        figures |= _of_one(sweep.trials[shown], clients.get(shown))
    return {name: to_png(figure, dpi=130) for name, figure in figures.items()}


def cluster_effects(frame: pd.DataFrame, axes: Sequence[str]) -> "dict[str, Figure]":
    """Return a figure per metric against the number of clusters, a line per partitioning; none without that axis."""
    if "num_clusters" not in frame:
        return {}
    metrics = [name for name in ("client_acc", "acc", "ari") if name in frame and frame[name].notna().any()]
    others = [a for a in axes if a in frame and a not in ("seed", "num_clusters") and frame[a].nunique() > 1]
    line = next((axis for axis in ("partition", *others) if axis in others), None)
    rest = [axis for axis in others if axis != line]
    panel = ", ".join(rest) if rest else None
    frame = frame[frame["num_clusters"].notna()].copy()
    if panel is not None and panel not in frame:  # several axes left: a panel per combination of theirs
        frame[panel] = [", ".join(map(str, row)) for row in frame[rest].itertuples(index=False)]
    return {
        f"{metric}_by_clusters": sweeps.axis_effect(frame, "num_clusters", metric, line, panel) for metric in metrics
    }


def _splits(sweep: "StoredSweep", frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return one split per data set and partitioning (six at most), of the first trial that has it."""
    axes = [axis for axis in ("dataset", "partition", "alpha", "num_clients") if axis in frame]
    found: dict[str, pd.DataFrame] = {}
    for i, row in frame[axes].drop_duplicates().iterrows():
        split = sweep.trials[int(str(i))].table("split")
        if split is not None and len(found) < 6:
            found[", ".join(map(str, row)) or "all trials"] = split
    return found


def _shown(sweep: "StoredSweep", frame: pd.DataFrame) -> int | None:
    """Return the trial that stands for the sweep: of those with the best ARI, the most accurate."""
    there = frame[frame["wall_s"].notna()]
    for column in ("ari", "client_acc", "acc"):
        if column in there and there[column].notna().any():
            there = there[there[column] >= there[column].max() - 1e-9]
    return int(there.index[0]) if len(there) else None


def _of_one(trial: "StoredTrial", clients: pd.DataFrame | None) -> "dict[str, Figure]":
    """Return the figures of one trial: its clusters, its servers, its load."""
    figures: dict[str, Figure] = {}
    assigned, split, load = (trial.table(name) for name in ("assignments", "split", "load"))
    groups = dict(zip(split["client"], split["group"], strict=True)) if split is not None else {}
    if assigned is not None:
        figures["cluster_map"] = trials.cluster_map(assigned, groups, f"Clusters over rounds: {trial.name}")
        figures["servers"] = sweeps.server_traces(assigned, clients, f"Servers: {trial.name}")
        if "x" in assigned and assigned["x"].notna().any():
            last = assigned[assigned["round"] == assigned["round"].max()].dropna(subset=["x"])
            points = last.assign(group=last["client"].map(groups).fillna(0).astype(int))
            figures["embedding"] = sweeps.embedding(points, f"Clients as the clustering saw them: {trial.name}")
    if load is not None:
        figures["load"] = trials.load_plot(load, f"Load: {trial.name}")
    return figures
