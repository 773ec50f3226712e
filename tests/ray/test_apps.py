"""Flower apps on Ray: hosts that die, hosts that are more or fewer, trials in turns."""

import json
import shutil
from pathlib import Path

import ray

from fedsweep.app.check import compare
from fedsweep.app.sweep import AppSweep, expand_app
from fedsweep.app.trial import run_app
from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.pool import HostPool
from fedsweep.records import TrialResult
from tests.on_flower import APPS, KEPT

DIES = """
    import os, pathlib, signal
    mark = pathlib.Path({mark!r})
    if partition == 1 and rounds == [2] and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def changed(name: str, place: Path, old: str, new: str) -> AppSweep:
    folder = shutil.copytree(APPS / name, place / name)
    [file] = folder.glob("*/client_app.py")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return expand_app(str(folder), [])


def test_a_killed_host_costs_time_and_no_result(ray_runtime: None, tmp_path: Path) -> None:
    """Clients keep state, which was that of the round before when the host died."""
    old = "    weights = weights + np.float64"
    dies = DIES.format(mark=str(tmp_path / "killed")).replace("[2]", "[1, 2]")
    sweep = changed("keeps_state", tmp_path, old, dies + old)
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.5)}))
    try:
        pool.wait()
        code = sweep.project.code
        *events, result = run_app(sweep.trials[0].config, code, pool.hosts, ray.put(code))
    finally:
        pool.close()
    assert (tmp_path / "killed").exists()
    assert isinstance(result, TrialResult)
    expected = json.loads(KEPT.read_text())["keeps_state"]
    assert [a.tolist() for a in result.models["global"].values()] == expected["arrays"]
    for number, metrics in expected["rounds"].items():
        of = {key.partition("/")[2]: v for key, v in events[1 + int(number)].metrics.items()}
        assert {key: of[key] for key in metrics} == metrics
    assert any("lost" in event for record in events[1:] for event in record.events)
    assert [*result.files] == ["final_model.npz"]  # kept, and not left in anybody's folder


def test_the_check_tells_apps_that_repeat_themselves(ray_hosts: list, tmp_path: Path) -> None:
    draws = "weights = weights + np.random.random() + "
    seeded = changed("numpy_quick", tmp_path / "a", "weights = weights + ", draws)
    difference, count = compare(seeded.trials[0].config, seeded.project.code, ray_hosts)
    assert not difference
    # 3 rounds x 4 clients: arrays and server-round to train, arrays and 2 metrics back; evaluated.
    assert count == 3 * 4 * (2 + 3 + 2 + 2)

    own = draws.replace("np.random.random()", "np.random.default_rng().random()")
    unseeded = changed("numpy_quick", tmp_path / "b", "weights = weights + ", own)
    difference, _ = compare(unseeded.trials[0].config, unseeded.project.code, ray_hosts)
    assert difference == "round 1, train replied by client 0: arrays['0']"
