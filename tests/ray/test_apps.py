"""Flower apps on Ray: hosts that die, hosts that are more or fewer, trials in turns."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

import fedsweep
from fedsweep.app.check import compare
from fedsweep.app.sweep import AppSweep, expand_app
from fedsweep.app.trial import run_alone, run_app
from fedsweep.config import HostGroup, ResourcesConfig
from fedsweep.engine.pool import HostPool
from fedsweep.records import TrialResult
from tests.on_flower import ALL, APPS, arrays_of, on_flower

DIES = """

import os
import pathlib
import signal


class Dies(type(app)):
    def __call__(self, message, context):
        calls = pathlib.Path({calls!r})
        if context.node_config["partition-id"] == 1 and len(made(calls)) < 2:
            with calls.open("a") as file:
                file.write("x")
            if len(made(calls)) == 2:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(message, context)


def made(calls):
    return calls.read_text() if calls.exists() else ""


app.__class__ = Dies
"""
"""What has the host die in client 1's second task, once: its text goes after an app's own."""


def changed(name: str, place: Path, old: str, new: str) -> AppSweep:
    folder = shutil.copytree(APPS / name, place / name)
    [file] = folder.glob("*/client_app.py")
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    return expand_app(str(folder), [])


@pytest.fixture(scope="module")
def hosts_that_die(ray_runtime: None) -> Iterator[list]:
    """Two client hosts, which come back when they are killed."""
    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.5)}))
    pool.wait()
    yield pool.hosts
    pool.close()


@pytest.mark.parametrize("name", ALL)
def test_a_killed_host_costs_time_and_no_result(
    name: str, hosts_that_die: list, tmp_path: Path
) -> None:
    """Arrays and metrics are those of Flower's own engine, state that of before the host died."""
    calls = tmp_path / "calls"
    folder = shutil.copytree(APPS / name, tmp_path / name)
    [client] = folder.glob("*/client_app.py")
    client.write_text(client.read_text() + DIES.format(calls=str(calls)))
    sweep = expand_app(str(folder), [])
    code = sweep.project.code
    events = run_app(sweep.trials[0].config, code, hosts_that_die, ray.put(code))
    _, *rounds, result = events
    assert calls.read_text() == "xx"
    assert any("lost" in event for record in rounds for event in record.events)
    assert isinstance(result, TrialResult)
    expected = on_flower(name)
    [saved] = result.files  # kept, and not left in anybody's folder
    (tmp_path / saved).write_bytes(result.files[saved])
    assert [array.tolist() for array in arrays_of(tmp_path)] == expected["arrays"]
    for number, metrics in expected["rounds"].items():
        of = {key.partition("/")[2]: v for key, v in rounds[int(number)].metrics.items()}
        assert {key: of[key] for key in metrics} == metrics
    assert [record.round for record in rounds] == list(range(len(rounds)))


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


ENDS = """

import os
import pathlib
import signal


class Ends(type(app)):
    def __call__(self, message, context):
        with pathlib.Path({calls!r}).open("a") as file:
            file.write("x")
        if pathlib.Path({calls!r}).stat().st_size == 37:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(message, context)


app.__class__ = Ends
"""
"""What has a sweep's only process die in the midst of its second trial's second round."""


def test_a_killed_sweep_goes_on_and_each_round_is_logged_once(
    template: Path, tmp_path: Path
) -> None:
    """All in one process, which is killed: driver, server and clients; two trials of 24 tasks."""
    calls = tmp_path / "calls"
    folder = shutil.copytree(APPS / "numpy_quick", tmp_path / "app")
    [client] = folder.glob("*/client_app.py")
    client.write_text(client.read_text() + ENDS.format(calls=str(calls)))
    words = ["app", str(folder), "run_config.lr=0.25,0.5", "resources.engine=inline"]
    words += ["tracking.figures=none", "tracking.log_models=false", f"tracking.output={tmp_path}"]
    shutil.copy(template, tmp_path / "mlflow.db")
    command = [sys.executable, "-m", "fedsweep", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    # The first trial's end may not be in the store yet: it costs nothing again, its replies are
    # kept. Of the second one the exchange that was under way is made once more.
    assert 48 < calls.stat().st_size <= 48 + 4

    results = fedsweep.load("numpy-quick", output=str(tmp_path))
    assert len(results) == 2
    assert not results.failures
    for trial, lr in zip(results._stored.trials, ("0.25", "0.5"), strict=True):
        alone = expand_app(str(APPS / "numpy_quick"), [f"run_config.lr={lr}"])
        expected = run_alone(alone.trials[0].config, alone.project.code)
        assert trial.run.data.tags["weights_sha256"] == expected.weights_sha256
        for key in ("3_clients/train.train_loss", "3_clients/evaluate.eval_error"):
            history = trial.store.client.get_metric_history(trial.run_id, key)
            assert sorted(point.step for point in history) == [1, 2, 3]
