"""Checkpoints: what they hold, how damage is found, and that every strategy goes on to the bit."""

import hashlib
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedsweep.errors import CheckpointError
from fedsweep.records import LoadSample, RoundRecord
from fedsweep.sweeps.prepare import make_split
from fedsweep.trial.checkpoint import CheckpointStore, decode, encode
from fedsweep.trial.trial import run_trial
from tests.trials import digits, events_of, outcome, small


def state(value: float = 1.0) -> dict:
    arrays = ArrayRecord(
        {"w": Array(np.array([[value, 2.0]], np.float32)), "n": Array(np.array(7))}
    )
    client = RecordDict(
        {
            "c": ConfigRecord({"b": b"\x00\xff", "l": [1, 2]}),
            "m": MetricRecord({"x": 0.1}),
            "a": arrays,
        }
    )
    return {
        "arrays": arrays, "clients": {"3": client}, "nan": float("nan"), "none": None,
        "pair": (1, 2.5), "moments": [np.arange(3.0)], "scalar": np.float32(0.1), "flag": True,
    }  # fmt: skip


def record(number: int) -> RoundRecord:
    load = (LoadSample(1.0, "h", "n", 2.0, 3.0, 4.0, 5.0),)
    return RoundRecord(
        number, {"acc": 0.1 * number}, {"round": [number]}, {}, load, ("lost",), 12.5
    )


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    store = CheckpointStore(str(tmp_path / "sub" / "key"), "key")
    for number in (1, 2, 3):
        store.save(
            number, state(number), [record(n) for n in ((0, 1) if number == 1 else (number,))]
        )
    return store


def test_a_state_comes_back_as_it_was() -> None:
    before, after = state(), decode(encode(state()))
    assert list(after) == list(before)
    assert after["arrays"]["w"].numpy().tolist() == [[1.0, 2.0]]
    assert after["arrays"]["w"].dtype == "float32"
    assert after["arrays"]["n"].numpy().shape == ()
    assert after["clients"]["3"]["c"] == before["clients"]["3"]["c"]
    assert after["clients"]["3"]["m"]["x"] == 0.1
    assert (after["pair"], after["none"], after["flag"]) == ((1, 2.5), None, True)
    assert (after["scalar"], type(after["scalar"])) == (np.float32(0.1), np.float32)
    assert np.isnan(after["nan"])
    after["moments"][0] += 1  # ours to write to


def test_the_last_two_states_and_all_records_are_kept(store: CheckpointStore) -> None:
    saved = store.load()
    assert saved is not None
    assert saved.round == 3
    assert saved.records == tuple(map(record, range(4)))
    assert {name for name in store._names() if "json" not in name} == {
        "000002.safetensors",
        "000003.safetensors",
    }
    store.remove()
    assert store.load() is None


@pytest.mark.parametrize("name", ["000003.safetensors", "000003.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    store: CheckpointStore, name: str, damage: str, tmp_path
) -> None:
    path = tmp_path / "sub" / "key" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes({"cut": bytes(data[:-5]), "flip": bytes(data), "gone": b""}[damage])
    saved = store.load()
    assert saved is not None
    assert saved.round == 2
    assert saved.state["arrays"]["w"].numpy().tolist() == [[2.0, 2.0]]


def test_files_that_are_no_checkpoint_of_ours_are_left_alone(
    store: CheckpointStore, tmp_path
) -> None:
    folder = tmp_path / "sub" / "key"
    strays = [
        "foo.json",
        ".json",
        "12.json",
        "000004.json.1f2e",
        "-00004.json",
        "notes.safetensors",
        "a b.json",
    ]
    for name in strays:
        (folder / name).write_text("{}")
    for name in ("000099.json", "000098.safetensors", "sub.json"):
        (folder / name).mkdir()
    (folder / "000098.json").write_bytes(b"\xff\x00")
    store.check()
    assert (store.load().round, len(store.load().records)) == (3, 4)
    store.save(4, state(4.0), [record(4)])
    assert store.load().round == 4
    assert all((folder / name).exists() for name in [*strays, "000099.json", "000098.safetensors"])
    with pytest.raises(CheckpointError, match="no checkpoint can be written to .*sub/key"):
        store.save(99, state(), [record(99)])


FIELDS = ("version", "trial", "round", "state_sha256", "records")


@pytest.mark.parametrize("value", ["missing", None, 3, "text", [], {}, [1], [{}], [None]])
@pytest.mark.parametrize("field", FIELDS)
def test_a_field_that_is_missing_or_wrong_gives_way_to_the_checkpoint_before(
    store: CheckpointStore, tmp_path, field: str, value: object
) -> None:
    """Or it is refused, in one line: never anything else. The checksum is right."""
    path = tmp_path / "sub" / "key" / "000003.json"
    entry = json.loads(json.loads(path.read_text())["entry"])
    assert set(entry) == set(FIELDS)
    entry |= {field: value}
    if value == "missing":
        del entry[field]
    text = json.dumps(entry)
    path.write_text(
        json.dumps({"sha256": hashlib.sha256(text.encode()).hexdigest(), "entry": text})
    )
    if field in ("version", "trial") and value != "missing":
        for call in (store.check, store.load):
            with pytest.raises(CheckpointError, match="start over with --fresh"):
                call()
        return
    store.check()
    assert store.load().round == (3 if field == "round" else 2)


@pytest.mark.parametrize("inner", ["[]", "3", "null", '"x"', "{}", "[" * 100_000])
@pytest.mark.parametrize("outer", [True, False])
def test_json_of_another_kind_gives_way_to_the_checkpoint_before(
    store: CheckpointStore, tmp_path, inner: str, outer: bool
) -> None:
    whole = {"sha256": hashlib.sha256(inner.encode()).hexdigest(), "entry": inner}
    (tmp_path / "sub" / "key" / "000003.json").write_text(inner if outer else json.dumps(whole))
    store.check()
    assert store.load().round == 2


def test_with_a_record_lost_the_trial_starts_over(store: CheckpointStore, tmp_path) -> None:
    (tmp_path / "sub" / "key" / "000001.json").write_text("{}")
    assert store.load() is None


def test_another_trial_or_version_is_refused(store: CheckpointStore, monkeypatch) -> None:
    with pytest.raises(
        CheckpointError, match="is a checkpoint of trial key, but this is trial other; start over"
    ):
        CheckpointStore(store.url, "other").check()
    monkeypatch.setattr("fedsweep.trial.checkpoint.VERSION", 3)
    with pytest.raises(CheckpointError, match="of version 2, but this is version 3"):
        store.load()


def test_the_millionth_round_comes_behind_the_one_before(tmp_path) -> None:
    store = CheckpointStore(str(tmp_path / "key"), "key")
    for number in range(999_998, 1_000_002):
        store.save(number, state(number), [])
    states = [name for name in store._names() if name.endswith("safetensors")]
    assert sorted(states) == ["1000000.safetensors", "1000001.safetensors"]


@pytest.mark.parametrize("error", [OSError(5, "i/o error"), RuntimeError("could not connect")])
def test_storage_that_fails_is_a_line_whatever_its_errors_are(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Those of object stores are no OSErrors; and nobody starts over because of one."""
    store = CheckpointStore("memory://faults/key", "key")
    store.save(1, state(), [record(0), record(1)])

    def fails(*words: object, **named: object) -> None:
        raise error

    asks = {
        "pipe_file": lambda: store.save(2, state(), [record(2)]),
        "cat_file": store.load,
        "ls": store.check,
        "rm": store.remove,
    }
    for method, ask in asks.items():
        with monkeypatch.context() as patched:
            patched.setattr(type(store._fs), method, fails)
            with pytest.raises(CheckpointError, match=str(error.args[-1])):
                ask()
    store.remove()


def test_any_fsspec_url_will_do() -> None:
    store = CheckpointStore("memory://bucket/key", "key")
    store.save(1, state(), [record(0), record(1)])
    saved = store.load()
    assert saved is not None
    assert saved.round == 1
    with pytest.raises(CheckpointError, match="can't be opened"):
        CheckpointStore("nope://x", "key").load()


NAMED = ["privacy.strict=false"]
CASES = {
    "fedavg": ["strategy=fedavg", "strategy.fraction_train=0.5"],
    "fedavgm": ["strategy=fedavgm"],
    "fedadam": ["strategy=fedadam"],
    "fedadagrad": ["strategy=fedadagrad"],
    "fedyogi": ["strategy=fedyogi"],
    "qfedavg": ["strategy=qfedavg"],
    "adaptive clipping": [*NAMED, "privacy=adaptive_server", "privacy.noise_multiplier=0.1"],
    "momentum after noise": [*NAMED, "privacy=fixed_client", "strategy=fedavgm"],
    "scaffold": ["strategy=scaffold", "strategy.fraction_train=0.5"],
    "kmeans": ["strategy=kmeans", "strategy.num_clusters=2", "strategy.warmup_rounds=2"],
    "client state": ["strategy=local"],
    "every second round": ["strategy=fedavgm", "checkpoint.every=2"],
}


@pytest.mark.parametrize("name", CASES)
def test_an_interrupted_trial_goes_on_to_the_bit(name: str, tmp_path) -> None:
    config = small(*CASES[name])
    expected = outcome(events_of(config))

    def events():
        store = CheckpointStore(str(tmp_path), config.key)  # as another process would open it
        return run_trial(config, digits(), make_split(digits(), config), checkpoints=store)

    for event in events():
        if isinstance(event, RoundRecord) and event.round == 2:
            break  # the checkpoint of round 2 is written before its record is given out
    resumed = list(events())
    assert resumed[0].first_round == 3
    assert outcome(resumed) == expected
    again = list(events())  # after the last checkpoint only the result is left
    assert (again[0].first_round, outcome(again)) == (4, expected)
    assert (
        again[-1].confusion.sum() == resumed[-1].confusion.sum()
        if again[-1].confusion is not None
        else True
    )


def test_losses_that_are_no_numbers_come_back(tmp_path) -> None:
    nan = float("nan")
    store = CheckpointStore(str(tmp_path), "key")
    store.save(0, state(), [RoundRecord(0, {"loss": nan}, {"eval_loss": [nan, 1.0]})])
    saved = store.load()
    assert saved is not None
    assert np.isnan(saved.records[0].metrics["loss"])
    assert np.isnan(saved.records[0].clients["eval_loss"]).tolist() == [True, False]
