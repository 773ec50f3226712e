"""Simulated devices: what is drawn, who is there when, traces of files, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedsweep.errors import ConfigError
from fedsweep.scenario.device import GFLOP, MBIT, TimedDevices, stream
from fedsweep.scenario.devices import DEVICES, devices_of
from fedsweep.scenario.presence import Intervals, Periodic, Presence
from fedsweep.sweeps.compose import compose

TIMED = sorted(name for name in DEVICES if DEVICES[name].timed)

HEADER = "id,rate,downlink,uplink"


def trace(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "devices.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def timed(name: str, folder: Path, **values: object) -> TimedDevices:
    if name == "trace":
        rows = [f"{i},{i + 1},{i + 2},{i + 3}" for i in range(12)]
        values["path"] = str(trace(folder, *rows))
    return devices_of(name, **values)


# What is drawn


@pytest.mark.parametrize("name", TIMED)
def test_newcomers_change_nobody_elses_device(name: str, tmp_path: Path) -> None:
    few, many = (timed(name, tmp_path).table(n, 3) for n in (5, 12))
    for column in ("rate_N", "down_N", "up_N", "memory_N", "watt_N"):
        np.testing.assert_array_equal(getattr(few, column), getattr(many, column)[:5])


@pytest.mark.parametrize("name", ["equal", "lognormal", "tiers"])
def test_days_begin_at_a_time_of_each_clients_own(name: str) -> None:
    devices = devices_of(name, availability="periodic", day_s=100.0, day_share=0.25)
    few, many = (devices.table(n, 3).presence for n in (5, 400))
    assert few.all_there(7.0).tolist() == many.all_there(7.0)[:5].tolist()
    assert 0.15 < many.all_there(7.0).mean() < 0.35


def test_lognormal_devices_are_the_median_times_exp_of_sigma_z() -> None:
    table = devices_of("lognormal", rate=4.0, rate_sigma=0.5, uplink_sigma=0.0).table(4000, 1)
    z = np.log(table.rate_N / (4.0 * GFLOP)) / 0.5
    np.testing.assert_allclose(z, stream(1, "rate").standard_normal(4000))
    assert (table.up_N == 5.0 * MBIT).all()
    assert np.corrcoef(table.rate_N, table.down_N)[0, 1] == pytest.approx(0, abs=0.05)
    without = devices_of("lognormal", rate_sigma=0, downlink_sigma=0, uplink_sigma=0)
    np.testing.assert_array_equal(
        without.table(9, 1).rate_N, devices_of("equal").table(9, 1).rate_N
    )


def test_tiers_have_their_shares_and_tell_their_power() -> None:
    tiers = {
        "slow": {"share": 0.75, "rate": 1.0, "downlink": 8.0, "uplink": 4.0, "watt": 2.0},
        "fast": {"share": 0.25, "rate": 10.0, "downlink": 80.0, "uplink": 40.0, "watt": 20.0},
    }
    table = devices_of("tiers", tiers=tiers).table(4000, 0)
    fast = table.rate_N == 10 * GFLOP
    assert fast.mean() == pytest.approx(0.25, abs=0.03)
    assert (table.watt_N == np.where(fast, 20.0, 2.0)).all()
    assert (table.up_N == np.where(fast, 40.0, 4.0) * MBIT).all()
    assert table.tells_power
    assert not devices_of("equal").table(3, 0).tells_power


# Who is there when


def test_a_day_by_hand() -> None:
    """Of 10 s, 4 in the light: client 0 from 0, 10, ...; client 1, whose clock shows 7, from 3."""
    presence = Periodic(np.array([0.0, 7.0]), 10.0, 4.0)
    assert [presence.there(0, t) for t in (0.0, 3.9, 4.0, 9.9, 10.0)] == [1, 1, 0, 0, 1]
    assert [presence.there(1, t) for t in (0.0, 2.9, 3.0, 6.9, 7.0)] == [0, 0, 1, 1, 0]
    assert (presence.until(0, 2.0), presence.until(1, 5.0), presence.until(0, 5.0)) == (4, 7, 5)
    assert [presence.next_coming(t) for t in (0.0, 4.0, 8.0)] == [3.0, 10.0, 10.0]


def test_intervals_by_hand() -> None:
    """Client 0 from 1 to 3 of every 5 s, client 1 once, client 2 never, client 3 always."""
    on = [((1.0, 3.0),), ((2.0, 4.0), (6.0, 7.0)), (), ((0.0, np.inf),)]
    presence = Intervals(on, [5.0, np.inf, np.inf, np.inf])
    assert [presence.there(0, t) for t in (0.0, 1.0, 2.9, 3.0, 6.0, 8.0)] == [0, 1, 1, 0, 1, 0]
    assert presence.all_there(6.5).tolist() == [True, True, False, True]
    assert (presence.until(0, 6.5), presence.until(1, 6.5)) == (8.0, 7.0)
    assert presence.until(3, 1e9) == np.inf
    assert [presence.next_coming(t) for t in (0.0, 2.0, 4.5, 7.0, 8.0)] == [
        1,
        np.inf,
        6,
        np.inf,
        11,
    ]


def _presences() -> list[Presence]:
    rng = np.random.default_rng(0)
    on = [tuple(pairs) for pairs in rng.random((20, 2, 2)).cumsum(axis=1).cumsum(axis=2).tolist()]
    spans = [[(float(a), float(b)) for a, b in sorted(own)] for own in on]
    apart = [[own[0], (own[0][1] + 0.1, own[0][1] + 0.3)] for own in spans]
    return [
        Periodic(rng.random(20) * 0.7, 0.7, 0.3),
        Intervals(apart, [own[-1][1] + 0.01 for own in apart]),
    ]


@pytest.mark.parametrize("presence", _presences(), ids=["periodic", "intervals"])
def test_whoever_comes_next_is_there_then_and_was_not_before(presence: Presence) -> None:
    now = 0.0
    for _ in range(300):
        before, then = presence.all_there(now), presence.next_coming(now)
        assert then > now
        came = np.flatnonzero(presence.all_there(then) & ~before)
        assert len(came)
        left = presence.until(int(came[0]), then)
        assert left > then
        assert not presence.there(int(came[0]), left)
        now = then


# Traces


def test_a_trace_by_hand(tmp_path: Path) -> None:
    path = trace(tmp_path, "0,5,8,4,0-10 20-30,3", "1,2.5,16,8,,6", header=f"{HEADER},on,watt")
    devices = devices_of("trace", path=str(path))
    table = devices.table(2, 0)
    assert table.rate_N.tolist() == [5e9, 2.5e9]
    assert (table.down_N.tolist(), table.up_N.tolist()) == ([1e6, 2e6], [5e5, 1e6])
    assert table.watt_N.tolist() == [3.0, 6.0]
    assert [table.presence.all_there(t).tolist() for t in (5.0, 15.0)] == [[1, 1], [0, 1]]
    assert devices.may_be_away


def test_intervals_that_touch_are_one(tmp_path: Path) -> None:
    """From 0 to 20 s nobody leaves and comes back at 10 s; after 20 s there is a gap."""
    path = trace(tmp_path, "0,5,8,4,0-10 10-20 25-30", header=f"{HEADER},on")
    presence = devices_of("trace", path=str(path)).table(1, 0).presence
    assert [presence.until(0, t) for t in (5.0, 10.0, 25.0)] == [20.0, 20.0, 30.0]
    assert presence.next_coming(21.0) == 25.0


def test_who_is_there_as_a_period_ends_and_begins_stays(tmp_path: Path) -> None:
    """Of each 30 s one is there from 20 to 35 s, one always, and one to 5 s alone."""
    rows = ['0,1,1,1,"[20]","[5]",30', '1,1,1,1,"[0]","[]",30', '2,1,1,1,"[0]","[5]",30']
    path = trace(tmp_path, *rows, header=f"{HEADER},active,inactive,finish_time")
    presence = devices_of("trace", path=str(path)).table(3, 0).presence
    assert [presence.until(0, t) for t in (2.0, 25.0, 30.0, 34.0, 80.0)] == [5, 35, 35, 35, 95]
    assert [presence.until(1, t) for t in (0.0, 29.0, 30.0, 1e6)] == [np.inf] * 4
    assert [presence.until(2, t) for t in (2.0, 31.0)] == [5, 35]
    assert [presence.next_coming(t) for t in (6.0, 21.0, 36.0)] == [20.0, 30.0, 50.0]


def test_cells_that_are_missing_in_parquet_are_as_empty_ones_in_csv(tmp_path: Path) -> None:
    """They were no numbers, and refused, where CSV took what is known of nothing."""
    frame = pd.DataFrame({
        "id": [0, 1], "rate": [1.0, 2], "downlink": [1.0, 1], "uplink": [1.0, 1],
        "memory": [2.0, None], "watt": [None, 3.0], "on": ["0-5", None],
    })  # fmt: skip
    frame.to_csv(tmp_path / "d.csv", index=False)
    frame.to_parquet(tmp_path / "d.parquet")
    for name in ("d.csv", "d.parquet"):
        table = devices_of("trace", path=str(tmp_path / name)).table(2, 0)
        assert table.memory_N.tolist() == [2.0, 1.0]
        np.testing.assert_array_equal(table.watt_N, [np.nan, 3.0])
        assert [table.presence.there(client, 6.0) for client in (0, 1)] == [False, True]


def test_a_trace_of_fedscale_in_csv_and_in_parquet(tmp_path: Path) -> None:
    """At work at 2 to 6 s and from 8 s on, of every 10 s; and until 3 s, and from 5 to 9 s."""
    columns = {
        "id": [0, 1], "rate": [1.0, 1.0], "downlink": [1.0, 1.0], "uplink": [1.0, 1.0],
        "duration": [6.0, 7.0], "active": [[2, 8], [5]], "inactive": [[6], [3, 9]],
        "finish_time": [10.0, 10.0],
    }  # fmt: skip
    frame = pd.DataFrame(columns)
    frame.to_csv(tmp_path / "d.csv", index=False)
    frame.to_parquet(tmp_path / "d.parquet")
    for name in ("d.csv", "d.parquet"):
        presence = devices_of("trace", path=str(tmp_path / name)).table(2, 0).presence
        seen = [presence.all_there(t).tolist() for t in (0.0, 2.0, 4.0, 5.0, 6.0, 9.0, 14.0)]
        assert seen == [[0, 1], [1, 1], [1, 0], [1, 1], [0, 1], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("header", "rows", "match"),
    [
        (HEADER, ["0,1,1,1", "2,1,1,1"], "devices.csv, line 3: id 2; ids have to be 0, 1, 2"),
        (HEADER, ["0,1,1,1", "0,1,1,1"], "line 3: id 0 is that of line 2 too; ids have to be"),
        (HEADER, ["x,1,1,1"], "line 2: id=x has to be a number"),
        (HEADER, ["0,-1,1,1"], "line 2: rate=-1 has to be a number above 0"),
        (HEADER, ["0,1,nan,1"], "line 2: downlink=nan has to be a number above 0"),
        (HEADER, ["0,1,1"], "line 2: it has not as many cells as the header"),
        (HEADER, [], "has no row; each is a device"),
        ("id,rate,downlink", ["0,1,1"], "line 1: it lacks uplink; columns are id, rate"),
        (f"{HEADER},speed", ["0,1,1,1,1"], "line 1: it has speed; columns are id, rate"),
        (f"{HEADER},on", ["0,1,1,1,5-3"], "line 2: the interval from 5 to 3 s has to"),
        (f"{HEADER},on", ["0,1,1,1,0-3 2-4"], "the interval from 2 to 4 s has to begin at 3"),
        (f"{HEADER},on", ["0,1,1,1,later"], "line 2: on=later has to be intervals as 0-3600"),
        (f"{HEADER},active", ["0,1,1,1,[0]"], "line 1: it lacks inactive, finish_time"),
        (f"{HEADER},active,inactive,finish_time", ['0,1,1,1,"[1,2,3]",[4],9'],
         "line 2: active has 3 times and inactive 1; they have to take turns"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_trace_is_said_with_its_line(
    header: str, rows: list[str], match: str, tmp_path: Path
) -> None:
    path = trace(tmp_path, *rows, header=header)
    with pytest.raises(ConfigError, match=match) as caught:
        compose(["devices=trace", f"devices.path={path}"])
    assert "\n" not in str(caught.value)


def test_a_trials_key_holds_what_a_trace_says_and_not_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    rows = [f"{i},1,1,1" for i in range(10)]
    here, there = trace(tmp_path / "a", *rows), trace(tmp_path / "b", *rows)
    words = ["devices=trace", f"devices.path={here}"]
    key = compose(words).key
    assert compose(["devices=trace", f"devices.path={there}"]).key == key
    trace(tmp_path / "a", *rows[:-1], "9,2,1,1")
    assert compose(words).key != key


# What is refused


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["devices=phones"], "unknown kind of devices 'phones'"),
        (["devices=trace"], "devices=trace needs its file; set devices.path"),
        (["devices=equal", "devices.day_s=10"], "devices.day_s.*devices.availability=always"),
        (["devices=equal", "devices.rate=-1"], "devices.rate"),
        (["devices=equal", "devices.rate_sigma=1"], "devices.rate_sigma"),
        (["devices.rate=1"], "devices.rate"),
        (["devices=tiers", "devices.tiers.phone.share=0"], "devices.tiers.phone.share"),
    ],
)  # fmt: skip
def test_refused(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        compose(words)
    assert "\n" not in str(caught.value)


def test_a_trace_of_fewer_devices_than_clients_is_refused_or_drawn_from(tmp_path: Path) -> None:
    path = trace(tmp_path, "0,1,1,1", "1,2,1,1")
    with pytest.raises(
        ConfigError, match="2 devices for num_clients=10; lower num_clients, or set"
    ):
        compose(["devices=trace", f"devices.path={path}"])
    drawn = devices_of("trace", path=str(path), pick="drawn").table(100, 0)
    assert set(drawn.rate_N.tolist()) == {1e9, 2e9}
