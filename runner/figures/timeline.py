"""A trial's clients over virtual time: when they receive, compute, send, and work in vain."""

from typing import TYPE_CHECKING

import numpy as np

from fedsweep.figures.canvas import legend, new_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MOST_CLIENTS = 60
"""Clients that are shown: those of the lowest numbers among all that were asked."""
MOST_MODELS = 40
"""Models whose time is marked."""

_COLOURS = {
    "receives": "#56B4E9", "computes": "#0072B2", "sends": "#009E73", "waits": "#DDDDDD",
    "in vain": "#D55E00",
}  # fmt: skip


def timeline(tasks: "pd.DataFrame", title: str = "") -> "Figure":
    """Show what each client did when, a row per client; thin lines are the times of models.

    Parameters
    ----------
    tasks : pd.DataFrame
        One row per task, with the columns of ``fedsweep.pace.ledger.TASK_COLUMNS``.
    """
    from matplotlib.patches import Patch

    clients = np.unique(tasks["client"].to_numpy())[:MOST_CLIENTS]
    shown = tasks[tasks["client"].isin(clients)]
    row = np.searchsorted(clients, shown["client"].to_numpy())
    height = 1.6 + 0.16 * len(clients)
    what = f"Clients over virtual time, the first {len(clients)}"
    figure, (axes,) = new_figure(10, height, title or what)
    for kind, (begin, end) in spans(shown).items():
        there = end > begin
        axes.barh(
            row[there], (end - begin)[there], left=begin[there], height=0.7,
            color=_COLOURS[kind], linewidth=0,
        )  # fmt: skip
    models = np.unique(tasks["model_s"].to_numpy())
    for time_s in models if len(models) <= MOST_MODELS else ():
        axes.axvline(time_s, color="black", lw=0.4, alpha=0.5)
    step = max(1, -(-len(clients) // 30))
    axes.set_yticks(range(0, len(clients), step), [str(c) for c in clients[::step]], fontsize=7)
    axes.set_ylim(len(clients) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("virtual seconds")
    axes.set_ylabel("client")
    legend(axes, {kind: Patch(color=colour) for kind, colour in _COLOURS.items()})
    return figure


def spans(tasks: "pd.DataFrame") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return begins and ends of what each task was, (tasks,) each, by its kind.

    A task receives, computes, sends, and waits for its model; all of one that was dropped or lost
    was in vain, as far as it came.
    """
    asked, ended, model = (tasks[key].to_numpy(float) for key in ("asked_s", "ended_s", "model_s"))
    down, compute = (tasks[key].to_numpy(float) for key in ("down_s", "compute_s"))
    used = tasks["fate"].to_numpy() == "used"
    received, computed = asked + down, asked + down + compute
    nothing = np.where(used, asked, ended)
    bounds = {
        "receives": (asked, received), "computes": (received, computed), "sends": (computed, ended),
        "waits": (ended, model),
    }  # fmt: skip
    found = {kind: (begin, np.where(used, end, begin)) for kind, (begin, end) in bounds.items()}
    return found | {"in vain": (asked, nothing)}
