"""Fixtures that several folders share. One Ray for the whole suite: starting it costs seconds."""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

logging.getLogger("flwr").setLevel(logging.ERROR)

SECONDS = "fedsweep/seconds"
"""In pytest's cache: what each test took when it last ran."""
FAST_S = 0.3
"""Most seconds of a test that ``--fast`` runs."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fast", action="store_true", help=f"leave out tests that last took more than {FAST_S} s"
    )


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist's workers report to who started them, and without a cache nothing is kept.
    keeps = not hasattr(config, "workerinput") and hasattr(config, "cache")
    if keeps:
        config.pluginmanager.register(_Seconds(config))
    # Data are read by the code that is tested, and not by one that filled the user's cache. Tests
    # compose configurations while they are imported; workers take the folder from who starts them.
    if not hasattr(config, "workerinput"):
        cache = tempfile.TemporaryDirectory(
            prefix="fedsweep-test-cache-", ignore_cleanup_errors=True
        )
        os.environ["FEDSWEEP_CACHE"] = cache.name
        config.add_cleanup(cache.cleanup)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that never ran here are fast until they are known not to be."""
    if config.getoption("--fast"):
        seconds = config.cache.get(SECONDS, {})
        slow = [item for item in items if seconds.get(item.nodeid, 0.0) > FAST_S]
        items[:] = [item for item in items if item not in set(slow)]
        config.hook.pytest_deselected(items=slow)


class _Seconds:
    """Keeps what tests take."""

    def __init__(self, config: pytest.Config) -> None:
        self._config, self._seconds = config, Counter[str]()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":  # a fixture's time is not the test's that comes first
            self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        known = self._config.cache.get(SECONDS, {})
        self._config.cache.set(SECONDS, known | self._seconds)


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name their stores; ``mlflow.set_tracking_uri`` sets the variable: it is unset after."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True, scope="module")
def _nothing_of_others() -> Iterator[None]:
    """What a file's tests bring of their own is nobody else's."""
    from tests.registries import own_parts

    with own_parts():
        yield


@pytest.fixture
def registries() -> Iterator[None]:
    """Have the parts that a test adds go away before the next one."""
    from tests.registries import own_parts

    with own_parts():
        yield


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh database of MLflow, made once, to be copied: MLflow takes seconds for each."""
    from fedsweep.config import TrackingConfig
    from fedsweep.tracking import Tracker

    folder = tmp_path_factory.mktemp("template")
    Tracker(TrackingConfig(output=str(folder))).close()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def ray_runtime() -> Iterator[None]:
    """Ray on this machine, told that it has 4 cores, so that several pools fit."""
    import ray

    from fedsweep.engine.pool import ray_session

    with ray_session(None, num_cpus=4):
        assert ray.is_initialized()
        yield


@pytest.fixture(scope="session")
def ray_hosts(ray_runtime: None) -> Iterator[list]:
    """Two client hosts that no test kills."""
    from fedsweep.config import HostGroup, ResourcesConfig
    from fedsweep.engine.pool import HostPool

    pool = HostPool(ResourcesConfig(hosts={"cpu": HostGroup(count=2, num_cpus=0.5)}))
    pool.wait()
    yield pool.hosts
    pool.close()
