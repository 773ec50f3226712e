"""What users have set in their environment: it is refused by its own name, in one line."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedsweep.config import TrackingConfig
from fedsweep.engine import pool
from fedsweep.environ import keep
from fedsweep.errors import ConfigError, DataError, ResourceError, TrackingError
from fedsweep.sweeps.compose import compose, compose_trial, with_contents
from fedsweep.tracking.store import open_store, tracking_uri
from fedsweep.tracking.template import template_of_mlflow


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which Ray a session takes, and start none."""
    begun: list[str] = []

    @contextmanager
    def here(num_cpus: int | None) -> Iterator[None]:
        begun.append("here")
        yield

    monkeypatch.setattr(pool.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(pool, "_here", here)
    monkeypatch.setattr(pool, "_init", lambda address, **options: begun.append(address))
    return begun


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("nonsense", "it is not HOST:PORT"),
        ("127.0.0.1:", "it is not HOST:PORT"),
        (":6379", "it is not HOST:PORT"),
        ("127.0.0.1:99999999", "it is not HOST:PORT"),
        ("127.0.0.1:65537", "it is not HOST:PORT"),
        ("127.0.0.1:six", "it is not HOST:PORT"),
        (" ", "it is not HOST:PORT"),
        ("Local", "it is not HOST:PORT"),
    ],
)
def test_a_stale_ray_address_is_refused_by_its_name(
    address: str, why: str, starts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ResourceError) as caught, pool.ray_session(None):
        pass
    told = str(caught.value)
    assert told.startswith(f"no Ray cluster answers at RAY_ADDRESS={address}".rstrip())
    assert why in told
    assert "unset it, or set it to HOST:PORT of its head node, auto, or local" in told
    named = pytest.raises(ResourceError, match=r"at resources.address=.*; give HOST:PORT")
    with named, pool.ray_session(address):
        pass
    assert starts == []


def test_where_ray_is_taken_from(starts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("", "local"):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pool.ray_session(None):
            pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pool.ray_session("local"):  # what is given as a setting wins
        pass
    assert starts == ["here"] * 3


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("nonsense", "MLFLOW_TRACKING_URI=nonsense is no MLflow store; give http://host:port"),
        ("sqlite://", "MLFLOW_TRACKING_URI=sqlite:// names no file"),
        ("sqlite:///:memory:", "MLFLOW_TRACKING_URI=sqlite:///:memory: names no file"),
        ("http://[bad", "MLFLOW_TRACKING_URI=http://[bad can't be used: Invalid IPv6 URL. Start"),
    ],
)
def test_a_store_of_the_environment_is_refused_by_its_name(
    uri: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as caught:
        open_store(TrackingConfig())
    assert str(caught.value).startswith(sentence)
    with pytest.raises(TrackingError, match=r"^tracking.uri=mlruns is no MLflow store"):
        tracking_uri(TrackingConfig(uri="mlruns"))


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSWEEP_DATA", "")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert compose([]).data.root is None
    assert tracking_uri(TrackingConfig(output="/x")) == "sqlite:////x/mlflow.db"


def test_a_data_folder_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSWEEP_DATA", "~no-such-user/x")
    told = "^FEDSWEEP_DATA=~no-such-user/x: the home folder of ~ is not known; set"
    with pytest.raises(ConfigError, match=told):
        compose([])
    assert compose(["data.root=/x"]).data.root == "/x"
    monkeypatch.setenv("FEDSWEEP_DATA", "data")
    assert compose([]).data.root == str(Path("data").absolute())


def test_a_data_folder_that_is_a_file_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDSWEEP_DATA", str(tmp_path / "file"))
    trial = compose_trial(["dataset=mnist", "dataset.id=null"])
    with pytest.raises(DataError, match=r"'mnist' can't be had: .*file/mnist \(from data.root\)"):
        with_contents([trial])


def test_no_home_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("FEDSWEEP_CACHE")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    told = r"^data.cache=~/.cache/fedsweep: the home folder of ~ is not known; set \$HOME"
    with pytest.raises(ConfigError, match=told):
        compose([])
    assert compose(["data.cache=/x"]).data.cache == "/x"
    monkeypatch.setenv("FEDSWEEP_CACHE", "/y")
    assert (compose([]).data.cache, template_of_mlflow().parent) == ("/y", Path("/y/stores"))


def test_a_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match=r"data.root='x': the folder that it is relative to"):
        compose(["data.root=x"])


def test_hydras_own_variable_changes_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for word, told in (("dataset=mnst", "unknown dataset 'mnst'"), ("seed=[1", "can't be read")):
        with pytest.raises(ConfigError, match=told) as caught:
            compose([word])
        assert str(caught.value).isprintable()


def test_what_is_kept_gives_way_to_what_a_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSWEEP_A", "theirs")
    monkeypatch.setenv("FEDSWEEP_B", "")
    monkeypatch.setenv("FEDSWEEP_C", "x")
    monkeypatch.delenv("FEDSWEEP_C")
    values = dict.fromkeys(("FEDSWEEP_A", "FEDSWEEP_B", "FEDSWEEP_C"), "ours")
    keep(values, unless_set=True)
    assert [os.environ[name] for name in values] == ["theirs", "", "ours"]
    keep(values)
    assert [os.environ[name] for name in values] == ["ours"] * 3
