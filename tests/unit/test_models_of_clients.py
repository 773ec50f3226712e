"""Models of a chunk's clients as records and as rows: what client parts compute with."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from fedsweep.strategies.layout import Layout
from fedsweep.strategies.models import Models

LAYOUT = Layout(("a.weight", "a.bias"), averaged=("a.mean",), carried=("a.count",))


def record(start: float, dtype: type = np.float32, count: int = 0) -> ArrayRecord:
    """Return a model: trained numbers from ``start`` on, a mean of 10 of them, a counter."""
    return ArrayRecord(
        {
            "a.weight": Array(np.array([[start, start + 1], [start + 2, start + 3]], dtype)),
            "a.mean": Array(np.array([10 * start], dtype)),
            "a.bias": Array(np.array(start + 4, dtype)),
            "a.count": Array(np.array(count)),
        }
    )


def values(of: ArrayRecord) -> dict[str, list[float]]:
    return {name: array.numpy().tolist() for name, array in of.items()}


def test_rows_are_the_trained_parameters_in_the_layouts_order() -> None:
    models = Models(LAYOUT, [record(0), record(10)])
    assert models.rows.tolist() == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert models.rows.dtype == np.float32
    assert not models.same


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_other_rows_leave_the_rest_of_a_model_and_its_types(dtype: type) -> None:
    moved = Models(LAYOUT, [record(0, dtype, 3), record(10, dtype, 4)]).with_rows(
        np.full((2, 5), 0.1)
    )
    for before, after in zip(
        [record(0, dtype, 3), record(10, dtype, 4)], moved.records, strict=True
    ):
        assert list(after) == list(before)
        assert [after[name].dtype for name in after] == [before[name].dtype for name in before]
        assert [after[name].shape for name in after] == [before[name].shape for name in before]
        assert values(after)["a.count"] == values(before)["a.count"]
        assert values(after)["a.mean"] == values(before)["a.mean"]
        assert after["a.bias"].numpy() == dtype(0.1)


def test_one_model_for_all_is_known_by_its_arrays() -> None:
    one = record(1)
    shared = Models(LAYOUT, [one, one, one])
    assert shared.same
    assert shared.rows.shape == (3, 5)
    assert not Models(LAYOUT, [one, record(1)]).same  # equal, and yet another
    assert not shared.with_rows(np.array(shared.rows)).same
    assert shared.take([0]).same


def test_some_in_another_order_and_twice() -> None:
    taken = Models(LAYOUT, [record(0), record(10), record(20)]).take([2, 0, 2])
    assert taken.rows[:, 0].tolist() == [20, 0, 20]


def test_parts_and_what_completes_them() -> None:
    models, others = (Models(LAYOUT, [record(start)]) for start in (0, 10))
    head = ["a.bias"]
    assert list(models.part(head).records[0]) == head
    assert list(models.without(head).records[0]) == ["a.weight", "a.mean", "a.count"]
    both = models.without(head).completed(others.part(head))
    assert both.rows.tolist() == [[0, 1, 2, 3, 14]]
    assert models.completed(others).rows.tolist() == models.rows.tolist()


def test_means_by_hand() -> None:
    """Weights 1 and 3; the counter is that of the heavier one, statistics are averaged."""
    models = Models(LAYOUT, [record(0, count=7), record(4, count=8)])
    first, second = models.means([[1, 3], [5, 0]]).records
    assert values(first) == {
        "a.weight": [[3, 4], [5, 6]],
        "a.mean": [30],
        "a.bias": 7,
        "a.count": 8,
    }
    assert values(second) == values(record(0, count=7))
