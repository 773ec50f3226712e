"""The writer thread with a store of this test's own."""

import threading
import time

import pytest

from runner.errors import TrackingError
from runner.tracking import ops
from runner.tracking.ops import Op
from runner.tracking.outbox import Outbox
from runner.tracking.writer import Writer


class FakeStore:
    """Takes operations in order, unless it is down; refuses those of kind ``wrong``."""

    def __init__(self):
        self.taken, self.down = [], threading.Event()

    def __call__(self, op):
        if op.kind == "wrong":
            raise ValueError("no such thing")
        if self.down.is_set():
            raise ConnectionError("refused")
        self.taken.append((op.data["i"], dict(op.files)))


def job(*numbers, kind="x"):
    return lambda: [Op(kind, "run", {"i": i}, {"a/b": b"%d" % i}) for i in numbers]


def expected(count):
    return [(i, {"a/b": b"%d" % i}) for i in range(count)]


@pytest.fixture
def store():
    return FakeStore()


def test_it_keeps_the_order(store, tmp_path):
    writer = Writer(store, Outbox(tmp_path / "box"), limit=2)
    for i in range(0, 20, 2):
        writer.put("x", job(i, i + 1))
    writer.stop()
    assert store.taken == expected(20)
    with pytest.raises(TrackingError, match="closed"):
        writer.put("late", job(1))


def test_what_a_dead_store_does_not_take_waits_on_disk_and_comes_in_order(store, tmp_path):
    store.down.set()
    writer = Writer(store, Outbox(tmp_path / "box"), limit=4)
    begin = time.monotonic()
    for i in range(100):
        writer.put("x", job(i))
    assert time.monotonic() - begin < 3  # nobody waited for the store
    while writer.spilled < 100:
        time.sleep(0.01)
    store.down.clear()
    writer.put("x", job(100))
    writer.flush()
    assert store.taken == expected(101)
    writer.stop()
    assert list(tmp_path.iterdir()) == []


def test_a_slow_store_fills_the_disk_not_the_memory(store, tmp_path):
    hold = threading.Event()

    def slow(op):
        hold.wait()
        store(op)

    writer = Writer(slow, Outbox(tmp_path / "box"), limit=4)
    filling = threading.Thread(target=lambda: [writer.put("x", job(i)) for i in range(8)])
    filling.start()
    filling.join(5)
    assert not filling.is_alive()  # the queue takes twice its limit
    hold.set()
    writer.stop()
    assert store.taken == expected(8)


def test_what_is_left_at_the_end_stays_on_disk(store, tmp_path):
    store.down.set()
    writer = Writer(store, Outbox(tmp_path / "box"), runs={"run": "id"}, patience_s=0.2)
    writer.put("x", job(0, 1))
    begin = time.monotonic()
    writer.stop()
    assert time.monotonic() - begin < 5
    assert writer.spilled == 2
    writer.check()  # a delay is no error
    again = Outbox(tmp_path / "box")
    assert again.lock()
    assert again.runs() == {"run": "id"}
    assert (len(again), again.first()) == (2, job(0)()[0])


def test_a_full_disk_and_a_dead_store_delay(store, tmp_path):
    store.down.set()
    (tmp_path / "box").write_text("a file, where the outbox wants its folder")
    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.put("x", job(0, 1))
    time.sleep(0.2)
    store.down.clear()
    writer.stop()
    assert store.taken == expected(2)


def test_what_the_store_refuses_is_told_and_later_jobs_only_close(store, tmp_path):
    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.put("the start", job(0, kind="wrong"))
    with pytest.raises(TrackingError, match="the start could not be written: ValueError: no such thing"):
        writer.flush()
    with pytest.raises(TrackingError):
        writer.put("x", job(1))
    writer.put("the end", lambda: [*job(2, kind="wrong")(), *job(0)()], closing=True)
    writer.stop()
    assert store.taken == expected(1)


def test_two_processes_do_not_share_an_outbox(tmp_path):
    first, second = Outbox(tmp_path / "box"), Outbox(tmp_path / "box")
    first.append(Op("x", "run", {"i": 1}), {})
    assert not second.lock()
    first.unlock()
    assert second.lock()


def test_a_number_is_no_number_after_json():
    [row] = ops.metrics("run", {"a": float("nan")}, 3, 5).data["metrics"]
    assert (row[0], row[2:]) == ("a", [5, 3])


def test_which_errors_pass():
    import requests
    from mlflow.exceptions import MlflowException

    busy, forbidden = requests.Response(), requests.Response()
    busy.status_code, forbidden.status_code = 503, 403
    for error in (
        MlflowException("no answer"),
        requests.ConnectionError("refused"),
        requests.Timeout("slow"),
        requests.HTTPError("busy", response=busy),
        OSError(28, "no space left on device"),
    ):
        assert ops.passing(error), error
    for error in (
        MlflowException.invalid_parameter_value("no key"),
        requests.HTTPError("forbidden", response=forbidden),
        ValueError("wrong"),
    ):
        assert not ops.passing(error), error


def backlog(store, box, takes_s, count=12, patience_s=0.3):
    """A writer that waits for a store that takes its time: half of the operations go to disk."""
    hold = threading.Event()

    def slow(op):
        hold.wait()
        time.sleep(takes_s)
        store(op)

    writer = Writer(slow, Outbox(box), limit=count // 2, patience_s=patience_s)
    writer.tell = (told := []).append
    for i in range(count):
        writer.put("x", job(i))
    hold.set()
    return writer, told


def test_a_slow_store_is_waited_for_as_long_as_it_takes_something(store, tmp_path):
    """Twelve operations of .2 s each are 2.4 s, eight times the patience; each one is progress."""
    writer, told = backlog(store, tmp_path / "box", 0.2)
    assert writer.settle()
    assert store.taken == expected(12)
    assert told
    assert all(line.startswith("waiting for MLflow to take ") for line in told)
    writer.stop()


def test_stopping_waits_for_a_slow_store_too(store, tmp_path):
    writer, told = backlog(store, tmp_path / "box", 0.2)
    writer.stop()
    assert store.taken == expected(12)
    assert writer.spilled == 0
    assert told


def test_a_store_that_takes_nothing_is_given_up_once(store, tmp_path):
    writer, _ = backlog(store, tmp_path / "box", 0.0, count=4, patience_s=0.5)
    assert writer.settle()
    store.down.set()
    writer.put("x", job(4, 5))
    begin = time.monotonic()
    assert not writer.settle()
    assert 0.5 <= time.monotonic() - begin < 2
    assert writer.waiting == 2
    begin = time.monotonic()
    writer.stop()  # the patience is spent
    assert time.monotonic() - begin < 0.4
    assert writer.spilled == 2


def test_a_store_that_hangs_is_given_up(store, tmp_path):
    hangs = threading.Event()
    writer = Writer(lambda op: hangs.wait(), Outbox(tmp_path / "box"), patience_s=0.3)
    writer.put("x", job(0))
    assert not writer.settle()
    hangs.set()
    writer.stop()


def test_work_of_its_own_is_no_silence_of_the_store(store, tmp_path):
    """The writer's thread draws figures; however long that takes, nobody waits for the store."""

    def drawing():
        time.sleep(0.8)
        yield from job(0)()

    writer = Writer(store, Outbox(tmp_path / "box"), patience_s=0.2)
    writer.put("x", drawing)
    assert writer.settle()
    assert store.taken == expected(1)
    writer.stop()
