"""The figures of a report, from a sweep in the tracking store."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedsweep.catalog import CATALOG
from fedsweep.config import TrialConfig
from fedsweep.figures import trial as trials
from fedsweep.figures.canvas import Extras
from fedsweep.report import plots as sweeps
from fedsweep.report.rows import Trials

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsweep.tracking.read import StoredSweep, StoredTrial

_Read = Callable[["StoredTrial", str], pd.DataFrame | None]
_CLUSTERS = "strategy.num_clusters"


def sweep_figures(sweep: "StoredSweep", rows: Trials, curves: pd.DataFrame) -> Extras:
    """Return the figures as PNG, by path.

    Parameters
    ----------
    sweep : StoredSweep
        Whose tables are read.
    rows : Trials
        Its trials, in its order.
    curves : pd.DataFrame
        A row per trial and round: ``trial``, ``panel``, ``line``, ``round``, ``mb``, and for each
        curve of the catalog ``acc``, ``acc_nan``.
    """
    pictures = Extras()

    def draw(name: str, make: "Callable[..., Figure]", *args: Any) -> None:
        pictures.draw(f"plots/{name}.png", partial(make, *args), dpi=130)

    def table(trial: "StoredTrial", name: str) -> pd.DataFrame | None:
        """Read a table; one that is damaged costs the figures that it is for."""
        found: list[pd.DataFrame | None] = []

        def read() -> dict[str, bytes]:
            found.append(trial.table(name))
            return {}

        pictures.add(f"{name}.parquet of {trial.name}", read)
        return found[0] if found else None

    curves = curves[curves["trial"].isin(rows.finished.index[rows.finished])]
    for value, (first, *_) in CATALOG.curves.items():
        for x, axis in (("round", "rounds"), ("mb", "megabytes")):
            if (curves[value].notna() & curves[x].notna()).any():
                told = first.axis_label, first.factor
                draw(f"{value}_over_{axis}", sweeps.over, curves, x, value, *told)
    for metric in (name for name in CATALOG.ranked if name in rows.metrics):
        if _CLUSTERS in rows.axes and rows.metrics[metric].notna().any():
            draw(f"{metric}_by_clusters", cluster_effect, rows, metric)
    labels = curves.drop_duplicates("trial").set_index("trial")[["panel", "line"]]
    read = {i: table(sweep.trials[i], "clients") for i in labels.index}
    clients = {i: of for i, of in read.items() if of is not None}
    final = [
        pd.DataFrame({"acc": of.loc[of["round"] == of["round"].max(), "eval_acc"], **labels.loc[i]})
        for i, of in clients.items()
        if "eval_acc" in of
    ]
    if final and (spread := pd.concat(final))["acc"].notna().any():
        draw("client_accuracy", sweeps.client_distributions, spread)
    if splits := _splits(sweep, rows, table):
        draw("label_distributions", sweeps.label_distributions, splits)
    shown = _shown(rows)
    if shown is not None:
        _draw_one(sweep.trials[shown], clients.get(shown), draw, table)
    return pictures


def cluster_effect(rows: Trials, metric: str) -> "Figure":
    """Return a metric against the number of clusters, a line per partitioning."""
    axes = map(str, rows.axes)
    others = [
        key for key in axes if key not in ("seed", _CLUSTERS) and rows.axes[key].nunique() > 1
    ]
    line = next((key for key in ("partition", *others) if key in others), None)
    rest = [key for key in others if key != line]
    frame = rows.frame()[rows.axes[_CLUSTERS].notna() & rows.finished].copy()
    names = dict(rows.names)
    if line:
        frame[line] = [_told(value) for value in frame[line]]
    panel = ", ".join(rest) or None  # a panel per combination of theirs
    if panel:
        names[panel] = ", ".join(names[key] for key in rest)
        frame[panel] = [", ".join(map(_told, place)) for place in frame[rest].to_numpy(object)]
    return sweeps.axis_effect(frame, _CLUSTERS, metric, line, panel, names=names)


def _told(value: str | float | None) -> str:
    """Return a setting as it is read; one that does not apply as a dash."""
    return "-" if pd.isna(value) else str(value)


def _splits(sweep: "StoredSweep", rows: Trials, table: "_Read") -> dict[str, pd.DataFrame]:
    """Return one split per problem (six at most), of the first trial that has it."""
    problem = [key for key in map(str, rows.axes) if TrialConfig.is_problem(key)]
    found: dict[str, pd.DataFrame] = {}
    for i, row in rows.axes[problem].drop_duplicates().iterrows():
        split = table(sweep.trials[int(str(i))], "split")
        if split is not None and len(found) < 6:
            found[", ".join(str(value) for value in row if not pd.isna(value)) or "all trials"] = (
                split
            )
    return found


def _shown(rows: Trials) -> int | None:
    """Return the trial that stands for the sweep: of those with the best ARI, the most accurate."""
    there = rows.metrics[rows.finished]
    for column in ("ari", "client_acc", "acc"):
        if column in there and there[column].notna().any():
            there = there[there[column] >= there[column].max() - 1e-9]
    return int(there.index[0]) if len(there) else None


def _draw_one(
    trial: "StoredTrial", clients: pd.DataFrame | None, draw: Callable[..., None], table: "_Read"
) -> None:
    """Draw the figures of one trial: its clusters, its servers, its load."""
    assigned, split, load = (table(trial, name) for name in ("assignments", "split", "load"))
    groups = dict(zip(split["client"], split["group"], strict=True)) if split is not None else {}
    if assigned is not None:
        draw(
            "cluster_map",
            trials.cluster_map,
            assigned,
            groups,
            f"Clusters over rounds: {trial.name}",
        )
        draw("servers", sweeps.server_traces, assigned, clients, f"Servers: {trial.name}")
        if "x" in assigned and assigned["x"].notna().any():
            last = assigned[assigned["round"] == assigned["round"].max()].dropna(subset=["x"])
            points = last.assign(group=last["client"].map(groups).fillna(0).astype(int))
            draw(
                "embedding",
                sweeps.embedding,
                points,
                f"Clients as the clustering saw them: {trial.name}",
            )
    if load is not None:
        draw("load", trials.load_plot, load, f"Load: {trial.name}")
