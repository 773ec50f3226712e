"""The figures of a report, from a sweep in the tracking store."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedsweep.catalog import CATALOG, Metric
from fedsweep.config import TrialConfig
from fedsweep.figures import trial as trials
from fedsweep.figures.canvas import SCREEN, Extras, Page
from fedsweep.figures.style import Way, styles
from fedsweep.report import comparisons
from fedsweep.report import plots as sweeps
from fedsweep.report.curves import ALONG, with_labels
from fedsweep.report.plots import Looks
from fedsweep.report.results import SEED
from fedsweep.report.rows import Trials
from fedsweep.report.stats import Test

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsweep.tracking.read import StoredTrial

_Read = Callable[["StoredTrial", str], pd.DataFrame | None]
_Draw = Callable[..., None]
_CLUSTERS = "strategy.num_clusters"
_FEW_BARS = 60  # that can be told apart
_MOST_SPLITS = 6  # side by side


def sweep_figures(
    stored: Sequence["StoredTrial"],
    rows: Trials,
    curves: pd.DataFrame,
    *,
    own: Sequence[Way],
    ways: Sequence[Way],
    compared: Sequence[str] = (),
    said: Callable[[str, object], str] | None = None,
    test: Test = "t",
    page: Page = SCREEN,
) -> Extras:
    """Return the figures, by path; always as PNG, and in the page's formats.

    Parameters
    ----------
    stored : sequence of StoredTrial
        Whose tables are read.
    rows : Trials
        The same trials, in the same order.
    curves : pd.DataFrame
        A row per trial and round: ``trial``, those of ``ALONG``, and for each curve of the
        catalog ``acc``, ``acc_nan``.
    own, ways : sequence of Way
        Those of these trials, one by one, and all of the sweep, shown here or not: they fix how
        each looks.
    compared : sequence of str
        Metrics that ways are compared by, by their names at a trial's end; else the ranked ones.
    said : callable, optional
        Reads a setting, by the axis's full key and its value.
    test : str
        Paired test of the wins.
    page : Page
        What they are made for.
    """
    pictures = Extras()

    def draw(name: str, make: "Callable[..., Figure]", *args: Any, **kept: Any) -> None:
        pictures.publish(f"plots/{name}", partial(make, *args, **kept), page)

    def table(trial: "StoredTrial", name: str) -> pd.DataFrame | None:
        """Read a table; one that is damaged costs the figures that it is for."""
        found: list[pd.DataFrame | None] = []

        def read() -> dict[str, bytes]:
            found.append(trial.table(name))
            return {}

        pictures.add(f"{name}.parquet of {trial.name}", read)
        return found[0] if found else None

    every = pd.DataFrame({"trial": range(len(stored))})
    labels = with_labels(every, rows, said).set_index("trial")
    known = styles(ways if set(own) <= set(ways) else own)
    looks = dict(zip(labels["line"], (known[way] for way in own), strict=True))

    # Over rounds, and along what else they took.
    curves = curves[curves["trial"].isin(rows.finished.index[rows.finished])]
    curves = curves.join(labels, on="trial")
    for value, (first, *_) in CATALOG.curves.items():
        for x, along in ALONG.items():
            if (curves[value].notna() & curves[x].notna()).any():
                told = first.axis_label, first.factor
                name = f"{value}_over_{along.figure}"
                draw(name, sweeps.over, curves, x, value, *told, looks=looks, page=page)

    # Ways against each other, over the conditions.
    ranked = [name for name in CATALOG.ranked if name in rows.metrics]
    whole = compared or ranked[:1]  # those of all would be more pictures than anybody looks at
    for name in dict.fromkeys([*compared, *ranked]):
        if name in rows.metrics and (name in whole or not compared):
            _compare(rows, labels, CATALOG.final(name), looks, test, page, draw, name in whole)
    for metric in ranked:
        varied = _CLUSTERS in rows.axes and rows.axes[_CLUSTERS].nunique() > 1
        if varied and rows.metrics[metric].notna().any():
            draw(f"{metric}_by_clusters", cluster_effect, rows, metric)

    # Single clients, splits, and one trial that stands for all.
    there = labels[rows.finished]
    read = {i: table(stored[i], "clients") for i in map(int, there.index)}
    clients = {i: of for i, of in read.items() if of is not None}
    final = [
        pd.DataFrame({"acc": of.loc[of["round"] == of["round"].max(), "eval_acc"], **labels.loc[i]})
        for i, of in clients.items()
        if "eval_acc" in of
    ]
    if final and (spread := pd.concat(final))["acc"].notna().any():
        draw("client_accuracy", sweeps.client_distributions, spread, looks=looks, page=page)
    splits, problems = _splits(stored, rows, table)
    if splits:
        left_out = f" ({len(splits)} of {problems} problems)" if len(splits) < problems else ""
        title = f"Labels per client{left_out}"
        draw("label_distributions", sweeps.label_distributions, splits, title)
    shown = _shown(rows)
    if shown is not None:
        _draw_one(stored[shown], clients.get(shown), draw, table)
    return pictures


def _compare(
    rows: Trials,
    labels: pd.DataFrame,
    metric: Metric,
    looks: Looks,
    test: Test,
    page: Page,
    draw: _Draw,
    whole: bool,
) -> None:
    """Draw a metric's bars, and as a whole its heat map, wins, and ranks where these are many."""
    name = metric.final
    seeds = rows.axes[SEED] if SEED in rows.axes else pd.Series(0, index=rows.axes.index)
    table = labels.assign(seed=seeds, value=rows.metrics[name])[rows.finished]
    there = rows.known[name] & (rows.metrics[name].notna() | (metric.over_seeds == "all"))
    table = table[there[rows.finished]]
    panels, lines = table["panel"].nunique(), table["line"].nunique()
    if lines < 2 or not table["value"].notna().any():
        return
    if panels * lines <= _FEW_BARS:
        draw(f"{name}_bars", comparisons.bars, table, metric, looks, page)
    if panels < 2 or not whole:
        return
    draw(f"{name}_heat_map", comparisons.heat_map, table, metric, page)
    draw(f"{name}_wins", comparisons.paired_wins, table, metric, test, page)
    if panels >= comparisons.MANY and lines > 2 and comparisons.is_whole(table):
        draw(f"{name}_ranks", comparisons.ranks, table, metric, looks, page)


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


def _splits(
    stored: Sequence["StoredTrial"], rows: Trials, table: "_Read"
) -> tuple[dict[str, pd.DataFrame], int]:
    """Return a split per problem (six at most), of its first trial that has one; and how many
    problems there are.
    """
    problem = [key for key in map(str, rows.axes) if TrialConfig.is_problem(key)]
    found: dict[str, pd.DataFrame] = {}
    names: set[str] = set()
    for i, row in rows.axes[problem].iterrows():
        name = ", ".join(str(value) for value in row if not pd.isna(value)) or "all trials"
        names.add(name)
        if name not in found and len(found) < _MOST_SPLITS:
            split = table(stored[int(str(i))], "split")
            if split is not None:
                found[name] = split
    return found, len(names)


def _shown(rows: Trials) -> int | None:
    """Return the trial that stands for the sweep: of those with the best ARI, the most accurate."""
    there = rows.metrics[rows.finished]
    for column in ("ari", "client_acc", "acc"):
        if column in there and there[column].notna().any():
            there = there[there[column] >= there[column].max() - 1e-9]
    return int(there.index[0]) if len(there) else None


def _draw_one(
    trial: "StoredTrial", clients: pd.DataFrame | None, draw: _Draw, table: "_Read"
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
