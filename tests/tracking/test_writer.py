"""The writer thread with a store of this test's own."""

import errno
import shutil
import threading
import time

import pytest

from fedsweep.errors import TrackingError
from fedsweep.tracking import ops
from fedsweep.tracking.ops import Op
from fedsweep.tracking.outbox import Outbox
from fedsweep.tracking.writer import Writer

RUN = "0123456789abcdef" * 2


class FakeStore:
    """Takes operations in order, unless it is down; refuses those with the tag ``wrong``."""

    def __init__(self):
        self.taken, self.down, self.ended = [], threading.Event(), {}

    def __call__(self, op):
        if "wrong" in op.data.get("tags", ()):
            raise ValueError("no such thing")
        if self.down.is_set():
            raise ConnectionError("refused")
        if op.kind == "end":
            self.ended[op.run] = op.data["status"], op.data["reason"]
        else:
            self.taken.append((int(op.data["tags"]["i"]), dict(op.files)))


def job(*numbers, wrong=False, run="run"):
    more = {"wrong": ""} if wrong else {}
    return lambda: [
        Op("batch", run, {"tags": {"i": str(i), **more}}, {"a/b": b"%d" % i}) for i in numbers
    ]


def expected(count):
    return [(i, {"a/b": b"%d" % i}) for i in range(count)]


@pytest.fixture
def store():
    return FakeStore()


def test_it_keeps_the_order(store, tmp_path):
    writer = Writer(store, Outbox(tmp_path / "box"), limit=2)
    for i in range(0, 20, 2):
        writer.put("x", "run", job(i, i + 1))
    writer.stop()
    assert store.taken == expected(20)
    with pytest.raises(TrackingError, match="closed"):
        writer.put("late", "run", job(1))


def test_what_a_dead_store_does_not_take_waits_on_disk_and_comes_in_order(store, tmp_path):
    store.down.set()
    writer = Writer(store, Outbox(tmp_path / "box"), limit=4)
    begin = time.monotonic()
    for i in range(100):
        writer.put("x", "run", job(i))
    assert time.monotonic() - begin < 3  # nobody waited for the store
    while writer.spilled < 100:
        time.sleep(0.01)
    store.down.clear()
    writer.put("x", "run", job(100))
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
    filling = threading.Thread(target=lambda: [writer.put("x", "run", job(i)) for i in range(8)])
    filling.start()
    filling.join(5)
    assert not filling.is_alive()  # the queue takes twice its limit
    hold.set()
    writer.stop()
    assert store.taken == expected(8)


def test_what_is_left_at_the_end_stays_on_disk(store, tmp_path):
    store.down.set()
    writer = Writer(store, Outbox(tmp_path / "box"), runs={"run": RUN}, patience_s=0.2)
    writer.put("x", "run", job(0, 1))
    begin = time.monotonic()
    writer.stop()
    assert time.monotonic() - begin < 5
    assert writer.spilled == 2
    assert writer.lost == {}  # a delay is no error
    again = Outbox(tmp_path / "box")
    assert again.lock()
    assert again.runs() == {"run": RUN}
    assert (len(again), again.first()) == (2, job(0)()[0])


@pytest.mark.parametrize(
    ("error", "full"),
    [(OSError(errno.ENOSPC, "no space left"), True), (ConnectionError("refused"), False)],
    ids=["a full disk", "silence"],
)
def test_a_store_whose_disk_is_full_is_told_from_one_that_is_silent(tmp_path, error, full):
    down = threading.Event()
    down.set()

    def store(op):
        if down.is_set():
            raise error

    writer = Writer(store, Outbox(tmp_path / "box"), patience_s=0.2)
    writer.put("x", "run", job(0))
    assert not writer.settle()
    assert writer.full == full
    down.clear()
    while writer.waiting:
        time.sleep(0.01)
    writer.stop()
    assert not writer.full


def test_a_full_disk_and_a_dead_store_delay(store, tmp_path):
    store.down.set()
    (tmp_path / "box").write_text("a file, where the outbox wants its folder")
    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.put("x", "run", job(0, 1))
    time.sleep(0.2)
    store.down.clear()
    writer.stop()
    assert store.taken == expected(2)


@pytest.mark.parametrize("waits", [False, True])
def test_what_the_store_refuses_costs_its_run_alone(store, tmp_path, waits):
    """At once, and after it has waited on disk."""
    if waits:
        store.down.set()
    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.tell = (told := []).append
    stored = []
    writer.put("the start", "run", job(0))
    writer.put("round 1", "run", job(1, wrong=True))
    writer.put("round 2", "run", job(2))
    writer.put("the end", "run", lambda: [ops.end("run", "FINISHED", 5)], closing=True)
    writer.once_stored("run", lambda: stored.append("run"))
    writer.put("round 1", "other", job(3, run="other"))
    writer.put("the end", "other", lambda: [ops.end("other", "FINISHED", 5)], closing=True)
    writer.once_stored("other", lambda: stored.append("other"))
    while waits and writer.spilled < 6:
        time.sleep(0.01)
    store.down.clear()
    writer.stop()
    assert [number for number, _ in store.taken] == [0, 3]
    assert store.ended == {
        "run": ("KILLED", "ValueError: no such thing"),
        "other": ("FINISHED", ""),
    }
    assert writer.lost == {"run": "ValueError: no such thing"}
    assert stored == ["other"]
    [line] = [line for line in told if "could not be written" in line]
    assert line.startswith("MLflow: " + ("a waiting 'batch'" if waits else "round 1"))
    aside = [path.name[:8] for path in (tmp_path / "aside-box").glob("[0-9]*")]
    assert sorted(aside) == (["00000002", "00000003"] if waits else [])


def test_a_job_that_raises_costs_its_run_alone(store, tmp_path):
    def broken():
        yield from job(0)()
        raise ZeroDivisionError

    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.put("a figure", "run", broken)
    writer.put("round 1", "other", job(1, run="other"))
    writer.stop()
    assert [number for number, _ in store.taken] == [0, 1]
    assert list(writer.lost) == ["run"]


@pytest.mark.parametrize("error", [OSError(errno.EIO, "i/o error"), KeyError("of a storage")])
def test_what_follows_may_fail_and_the_writer_goes_on(store, tmp_path, error):
    """Storage has errors of its own, and they are not all OSErrors."""

    def tidy():
        raise error

    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.put("x", "run", job(0))
    writer.once_stored("run", tidy)
    writer.put("x", "run", job(1))
    assert writer.settle()
    writer.stop()
    assert store.taken == expected(2)
    assert writer.lost == {}


def test_a_disk_that_is_full_once_the_store_answers_again_loses_nothing(
    store, tmp_path, monkeypatch
):
    """What was sent can't be noted then; the next session asks the store for it."""
    store.down.set()
    box = Outbox(tmp_path / "box")
    writer = Writer(store, box, patience_s=5.0)
    create = Op("create", "run", {"name": "a", "start_ms": 1, "tags": {"i": "0"}, "parent": None})
    writer.put("the start", "run", lambda: [create])
    writer.put("x", "run", job(1))
    while writer.spilled < 2:
        time.sleep(0.01)

    def full(path, content):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("fedsweep.tracking.outbox.write_whole", full)
    store.down.clear()
    assert writer.settle()
    writer.stop()
    assert [number for number, _ in store.taken] == [0, 1]
    assert writer.lost == {}
    assert list(tmp_path.iterdir()) == []


def test_what_was_sent_from_a_disk_that_takes_nothing_is_sent_again_whole(
    store, tmp_path, monkeypatch
):
    box = Outbox(tmp_path / "box")
    for i in range(2):
        box.append(job(i)()[0], {})

    def read_only(*words, **named):
        raise OSError(errno.EROFS, "read-only file system")

    with monkeypatch.context() as patched:
        for name in ("rename", "unlink", "rmdir"):
            patched.setattr(f"os.{name}", read_only)
        box.done({}, made_run=True)
        assert len(box) == 1
    box.unlock()
    again = Outbox(tmp_path / "box")
    assert (len(again), again.gap, again.first()) == (2, False, job(0)()[0])


@pytest.mark.parametrize("ask", ["settle", "flush", "put"])
def test_nobody_waits_for_a_writer_that_ended(store, tmp_path, ask, monkeypatch):
    """Whatever ends its thread: the sweep is told, and does not hang at its end."""
    monkeypatch.setattr("threading.excepthook", lambda told: None)
    writer = Writer(store, Outbox(tmp_path / "box"), limit=1)

    def dies(job):
        raise SystemExit

    monkeypatch.setattr(writer, "_do", dies)
    writer.put("x", "run", job(0))
    asked = threading.Thread(target=lambda: asks(writer, ask), daemon=True)
    asked.start()
    asked.join(10)
    assert not asked.is_alive()
    assert writer.waiting


def asks(writer, what):
    if what == "settle":
        assert not writer.settle()
    elif what == "flush":
        writer.flush()
    else:
        with pytest.raises(TrackingError):
            any(writer.put("x", "run", job(i)) for i in range(9))


@pytest.mark.parametrize("vanishes", ["the event", "the outbox", "its file"])
def test_an_outbox_that_somebody_tidied_costs_its_run_alone(store, tmp_path, vanishes):
    store.down.set()
    writer = Writer(store, Outbox(tmp_path / "box"))
    writer.put("x", "run", job(0))
    writer.put("x", "other", job(1, run="other"))
    while writer.spilled < 2:
        time.sleep(0.01)
    first = tmp_path / "box" / "00000001-run"
    shutil.rmtree(
        {"the event": first, "the outbox": first.parent}.get(vanishes, tmp_path / "none"), True
    )
    if vanishes == "its file":
        (first / "file0").unlink()
    store.down.clear()
    writer.stop()
    assert writer.spilled == 0
    assert [number for number, _ in store.taken] == ([] if vanishes == "the outbox" else [1])
    assert "is damaged" in writer.lost["run"]


def test_two_processes_do_not_share_an_outbox(tmp_path):
    first, second = Outbox(tmp_path / "box"), Outbox(tmp_path / "box")
    first.append(job(1)()[0], {})
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
        OSError(errno.ENOSPC, "no space left on device"),
    ):
        assert ops.passing(error), error
    for error in (
        MlflowException.invalid_parameter_value("no key"),
        requests.HTTPError("forbidden", response=forbidden),
        ValueError("wrong"),
        OSError(errno.ENAMETOOLONG, "file name too long"),
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
        writer.put("x", "run", job(i))
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


def test_a_long_wait_is_told_ever_less_often(store, tmp_path, monkeypatch):
    """In the 1.4 s behind the first one: 28 words at one pace, 5 at a growing one."""
    monkeypatch.setattr("fedsweep.tracking.writer._TELL_S", 0.05)
    writer, told = backlog(store, tmp_path / "box", 0.2)
    assert writer.settle()
    assert 2 <= len(told) <= 9
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
    writer.put("x", "run", job(4, 5))
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
    writer.put("x", "run", job(0))
    assert not writer.settle()
    hangs.set()
    writer.stop()


def test_work_of_its_own_is_no_silence_of_the_store(store, tmp_path):
    """The writer's thread draws figures; however long that takes, nobody waits for the store."""

    def drawing():
        time.sleep(0.8)
        yield from job(0)()

    writer = Writer(store, Outbox(tmp_path / "box"), patience_s=0.2)
    writer.put("x", "run", drawing)
    assert writer.settle()
    assert store.taken == expected(1)
    writer.stop()
