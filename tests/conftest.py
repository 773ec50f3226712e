"""Fixtures that several folders share. One Ray for the whole suite: starting it costs seconds."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

logging.getLogger("flwr").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests name their stores; ``mlflow.set_tracking_uri`` sets the variable, so it is unset afterwards too."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


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
