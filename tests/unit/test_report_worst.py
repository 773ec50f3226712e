"""Methods by the worst attack: means by hand, ranks within a problem, what lacks."""

from math import nan

import pytest

from fedsweep.records import TrialRow
from fedsweep.report.results import results_table
from fedsweep.report.text import markdown
from fedsweep.report.worst import worst_table


def row(words: str, **metrics: float) -> TrialRow:
    return TrialRow(dict(word.split("=") for word in words.split()), metrics)


ROWS = [
    *(row(f"attack=none strategy=fedavg seed={s}", client_acc=0.9) for s in (0, 1)),
    *(row(f"attack=alie strategy=fedavg seed={s}", client_acc=acc)
      for s, acc in enumerate((0.2, 0.4))),
    *(row(f"attack=ipm strategy=fedavg seed={s}", client_acc=0.8) for s in (0, 1)),
    *(row(f"attack=none strategy=krum seed={s}", client_acc=0.7) for s in (0, 1)),
    *(row(f"attack=alie strategy=krum seed={s}", client_acc=0.6) for s in (0, 1)),
    *(row(f"attack=ipm strategy=krum seed={s}", client_acc=0.5) for s in (0, 1)),
]  # fmt: skip


def lines(rows: list[TrialRow]) -> list[str]:
    table = worst_table(results_table(rows))
    assert table
    return markdown(table.lines()).splitlines()


def test_the_worst_is_the_least_mean_over_seeds() -> None:
    """FedAvg's best mean over attacks is no help: (.3 + .8) / 2 = .55, and Krum's as well."""
    found = lines(ROWS)
    assert found[0] == (
        "| strategy | rank | worst attack | client accuracy (%) under it | mean over attacks "
        "| without attackers |"
    )
    assert found[2:] == [
        "| krum | 1 | ipm | 50.0 ± 0.0 | 55.0 | 70.0 ± 0.0 |",
        "| fedavg | 2 | alie | 30.0 ± 14.1 | 55.0 | 90.0 ± 0.0 |",
    ]


def test_ranks_are_within_a_problem_and_other_settings_of_attacks_are_attacks_too() -> None:
    rows = [
        row(f"attack={attack} attack.fraction={share} partition={part} strategy={s} seed=0",
            client_acc=acc)
        for attack, share, part, s, acc in (
            ("alie", "0.1", "iid", "a", 0.8), ("alie", "0.4", "iid", "a", 0.3),
            ("ipm", "0.1", "iid", "a", 0.7), ("ipm", "0.4", "iid", "a", 0.6),
            ("alie", "0.1", "iid", "b", 0.9), ("alie", "0.4", "iid", "b", 0.4),
            ("ipm", "0.1", "iid", "b", 0.7), ("ipm", "0.4", "iid", "b", 0.6),
            ("alie", "0.1", "shard", "a", 0.2), ("ipm", "0.1", "shard", "a", 0.1),
        )
    ]  # fmt: skip
    told = [line.split(" | ")[:4] for line in lines(rows)[2:]]
    assert told == [
        ["| iid", "b", "1", "alie, fraction=0.4"],
        ["| iid", "a", "2", "alie, fraction=0.4"],
        ["| shard", "a", "1", "ipm, fraction=0.1 (of 2 of 4)"],
    ]


def test_what_diverged_is_the_worst_and_what_failed_is_said() -> None:
    rows = [*ROWS[:6], *ROWS[6:8], row("attack=alie strategy=krum seed=0"),
            row("attack=ipm strategy=krum seed=0", client_acc=nan)]  # fmt: skip
    *_, last = lines(rows)
    assert last == "| krum | 2 | ipm (of 1 of 2) | nan (1 of 1) | nan (1 of 1) | 70.0 ± 0.0 |"
    *_, nothing = lines([*ROWS[:6], row("attack=none strategy=krum seed=0")])
    assert nothing == "| krum | 2 | - | - | - | - |"


def test_a_mean_over_attacks_counts_the_trials_that_diverged() -> None:
    rows = [
        row(f"attack={name} strategy=a seed={seed}", client_acc=nan if name == "ipm" else 0.5)
        for name in ("alie", "ipm") for seed in range(3)
    ]  # fmt: skip
    *_, last = lines(rows)
    assert "| nan (3 of 3) | nan (3 of 6) |" in last


@pytest.mark.parametrize("rows", [
    [row("strategy=a seed=0", client_acc=0.5)],
    [row("attack=alie strategy=a seed=0", client_acc=0.5)],
    [row("attack=alie seed=0", wall_s=1.0), row("attack=ipm seed=0", wall_s=1.0)],
])  # fmt: skip
def test_without_attacks_to_choose_among_there_is_none(rows: list[TrialRow]) -> None:
    assert worst_table(results_table(rows)) is None
