"""Drivers, hosts, trials and Ray's own processes are killed, at the start too: no bit differs."""

from pathlib import Path

import pytest

from benchmarks.soak import soak

KILLS = 30


@pytest.mark.timeout(2400)  # 30 kills, and Ray started again after many of them
def test_a_sweep_under_kills_ends_as_one_that_nobody_disturbed(tmp_path: Path) -> None:
    laps = soak(tmp_path, KILLS, KILLS, seed=1, rounds=16)
    assert [fault for lap in laps for fault in lap.faults] == []
    kills = sum((lap.kills for lap in laps[1:]), laps[0].kills)
    assert kills.total() == KILLS
    assert {name.partition(",")[0] for name in kills} >= {"driver", "host", "trial", "raylet"}
    assert any(name.endswith("start") for name in kills)
