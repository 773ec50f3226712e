"""What stands under a table: what it shows, how sure it is, by which test."""

from collections import Counter
from collections.abc import Mapping, Sequence

from fedsweep.config import TrialConfig
from fedsweep.report.choice import Choice, Spread
from fedsweep.report.curves import Target
from fedsweep.report.results import Cells
from fedsweep.report.rows import grouped
from fedsweep.report.stats import LEAST, LEVEL, TESTS
from fedsweep.report.table import Table
from fedsweep.report.tuning import Tuned


def caption_of(
    table: Table,
    cells: Cells,
    choice: Choice,
    names: Mapping[str, str],
    fixed: Sequence[str],
    best: Tuned | None,
    absent: int,
) -> str:
    """Return what a table shows, and how sure it is, in sentences.

    Parameters
    ----------
    table : Table
        As it is read, but for this.
    cells : Cells
        The results that it is of.
    choice : Choice
        What was asked for.
    names : mapping
        What axes are called, by full key.
    fixed : sequence of str
        What is said of axes that are no row and no column.
    best : Tuned or None
        How the best value of an axis was chosen.
    absent : int
        Trials that the store lacks.
    """
    words = [choice.caption.rstrip(".") + "."] if choice.caption else []
    if fixed:
        words.append(", ".join(fixed) + ".")
    metrics = {column.name: column.metric for column in table.columns if column.metric}
    if table.across and len({column.name for column in table.columns}) == 1:
        heading = table.columns[0].heading
        words.append(f"{heading[:1].upper()}{heading[1:]}.")
    words.append(_BEHIND[table.spread])
    numbers = cells.numbers
    if table.spread == "full" and (numbers["trials"] == LEAST - 1).any():
        words.append(f"Of fewer than {LEAST} trials: (lowest to highest).")
    if table.spread == "interval" and (numbers["trials"] < LEAST).any():
        words.append(f"None of fewer than {LEAST} trials.")
    if any(metric.ranked for metric in metrics.values()):
        words.append(_marks(table, cells, choice, names))
    shown = [line[i] for line in table.cells for i, c in enumerate(table.columns) if c.metric]
    if any(cell.diverged for cell in shown):
        words.append("nan (k of n): k of a cell's n trials diverged.")
    lost, every = int(numbers["failed"].sum()), int(numbers[["trials", "failed"]].sum().sum())
    if lost and all(column.name != "failed" for column in table.columns):
        words.append(f"{lost} of {every} trials failed or have yet to end, and are in no mean.")
    if any(column.name == "recovered" for column in table.columns) or (
        not choice.is_chosen and "recovered" in numbers
    ):
        words.append("Recovered: trials whose clusters are the known groups (ARI = 1).")
    if choice.target and any(metric.over_seeds == "reached" for metric in metrics.values()):
        target = Target.parse(choice.target)
        words.append(f"Target: {target}; means over the trials that reached it.")
    if choice.epsilon is not None:
        words.append(
            "Accuracy within epsilon: of the global model in the last evaluated round that had "
            f"spent no more than {choice.epsilon:g}; means over the trials that have one."
        )
    if best is not None:
        words.append(best.told)
    if absent:
        words.append(f"NOT WHOLE: {absent} trials of the sweep are not in the store.")
    return " ".join(filter(None, words))


_BEHIND: Mapping[Spread, str] = {
    "full": "Mean ± standard deviation [95% confidence interval of the mean, Student's t] over the "
    "seeds.",
    "std": "Mean ± standard deviation over the seeds.",
    "interval": "Mean ± half the width of its 95% confidence interval (Student's t) over the "
    "seeds.",
    "none": "Mean over the seeds.",
}


def _marks(table: Table, cells: Cells, choice: Choice, names: Mapping[str, str]) -> str:
    """Say what bold means, by which test; nothing where no row has another one beside it."""
    keys = [*map(str, cells.axes)]
    varied = [key for key in keys if cells.axes[key].nunique(dropna=False) > 1]
    problem = [key for key in varied if TrialConfig.is_problem(key)]
    same = f" of the same {', '.join(names[key] for key in problem)}" if problem else ""
    at_problem, _ = grouped(cells.axes, problem, reorder=False)
    ranked = [c.name for c in table.columns if c.metric and c.metric.ranked]

    def rivals(least: int) -> int:
        """Return how many rows of one problem have a metric in so many trials, at most."""
        found = Counter(
            (name, at)
            for name in set(ranked)
            for at, count in zip(at_problem, cells.numbers[f"{name}_n"], strict=True)
            if count >= least
        )
        return max(found.values(), default=0)

    if rivals(1) < 2:
        return ""
    if rivals(LEAST) < 2:
        return f"No row is tested against others: that takes {LEAST} seeds of each."
    rule = (
        f"{TESTS[choice.test]} over at least {LEAST} seeds, the sign test where all differences "
        f"are the same; p < {LEVEL}, corrected for the number of rows by Holm"
    )
    lacking = any((cells.numbers[f"{name}_n"] == 0).any() for name in set(ranked))
    other = "each other row that has the metric" if lacking else "each other row"
    if any(cell.best for line in table.cells for cell in line):
        return f"Bold: better than {other}{same} ({rule})."
    return f"No row is better than {other}{same} ({rule})."
