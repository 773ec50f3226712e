"""The picture of a trial's virtual time."""

import numpy as np
import pandas as pd

from fedsweep.figures.canvas import new_layouts, to_png
from fedsweep.figures.timeline import spans, timeline
from fedsweep.pace.ledger import TASK_COLUMNS

TASKS = pd.DataFrame(
    [
        (1, 0, 0, 0.0, 1.0, 2.0, 0.5, 3.5, 5.0, "used"),
        (1, 4, 0, 0.0, 2.0, 4.0, 1.0, 5.0, 5.0, "dropped"),
        (2, 4, 1, 5.0, 2.0, 4.0, 1.0, 6.0, 9.0, "lost"),
    ],
    columns=TASK_COLUMNS,
)


def test_what_clients_do_when_by_hand() -> None:
    found = {
        kind: [(b, e) for b, e in zip(*bounds, strict=True) if e > b]
        for kind, bounds in spans(TASKS).items()
    }
    assert found == {
        "receives": [(0, 1)], "computes": [(1, 3)], "sends": [(3, 3.5)], "waits": [(3.5, 5)],
        "in vain": [(0, 5), (5, 6)],
    }  # fmt: skip


def test_it_is_drawn_with_a_row_per_client() -> None:
    figure = timeline(TASKS)
    [axes] = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["0", "4"]
    assert len(axes.patches) == 6
    assert to_png(figure, 50, new_layouts()).startswith(b"\x89PNG")
    assert np.isclose(axes.get_xlim()[0], 0)
