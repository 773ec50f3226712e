"""What running somebody's Flower app takes of Flower's insides: ``runner/app/insides.py``."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord
from flwr.server import server as old
from flwr.server.client_manager import SimpleClientManager
from flwr.serverapp.strategy import Strategy

from fedsweep.app.insides import app_files, app_settings, in_order, read_words, watched
from fedsweep.app.sweep import expand_app
from fedsweep.app.trial import run_app
from fedsweep.errors import ConfigError, TrialError
from tests.on_flower import APPS, arrays_of, on_flower


@pytest.mark.parametrize("name", ["numpy_quick", "old_style"])
def test_flower_as_it_is_installed_gives_what_we_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both kinds of servers, on Flower's engine and ours, one after the other."""
    theirs = on_flower(name)
    monkeypatch.chdir(tmp_path)
    sweep = expand_app(str(APPS / name), ["resources.engine=inline"])
    _, *rounds, result = run_app(sweep.trials[0].config, sweep.project.code)
    assert [array.tolist() for array in arrays_of(tmp_path)] == theirs["arrays"]
    assert [a.tolist() for a in result.models["global"].values()] == theirs["arrays"]
    for number, metrics in theirs["rounds"].items():
        ours = {key.partition("/")[2]: v for key, v in rounds[int(number)].metrics.items()}
        assert {key: ours[key] for key in metrics} == metrics


class _Seen:
    """Sees nothing, and keeps it."""

    def aggregated(self, message_type: str, metrics: Any) -> None: ...

    def central(self, server_round: int, metrics: Any) -> None: ...

    def model(self, arrays: ArrayRecord) -> None: ...


def test_flower_is_left_as_it_was() -> None:
    places = [
        (Strategy, "start"), (old.Server, "fit"), (old.Server, "fit_round"),
        (old.Server, "evaluate_round"), (old, "fit_clients"), (old, "evaluate_clients"),
        (SimpleClientManager, "wait_for"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name in places]
    with watched(_Seen()), in_order():
        meanwhile = [getattr(owner, name) for owner, name in places]
        assert not any(a is b for a, b in zip(before, meanwhile, strict=True))
        with pytest.raises(TrialError, match="waits for 3 clients, and there are 0"):
            SimpleClientManager().wait_for(3)
    assert [getattr(owner, name) for owner, name in places] == before


def test_a_folder_is_read_and_bundled_as_flower_does(tmp_path: Path) -> None:
    settings = app_settings(APPS / "numpy_quick")
    assert settings["tool"]["flwr"]["app"]["components"]["serverapp"] == (
        "numpy_quick.server_app:app"
    )
    files = app_files(APPS / "numpy_quick", settings)
    assert [*files] == [
        f"numpy_quick/{name}.py" for name in ("__init__", "client_app", "server_app")
    ]
    with pytest.raises(ConfigError, match="is no Flower app"):
        app_settings(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(ConfigError, match=r"Missing \[tool.flwr.app\] section"):
        app_settings(tmp_path)


def test_the_words_of_flwr_run_are_read(tmp_path: Path) -> None:
    assert read_words(["a=1 b=0.5", "c.d='x' e=true"]) == {"a": 1, "b": 0.5, "c.d": "x", "e": True}
    (tmp_path / "c.toml").write_text("[a]\nb = 2\n")
    assert read_words([str(tmp_path / "c.toml")]) == {"a.b": 2}
    with pytest.raises(ConfigError, match="--run-config a=x=y"):
        read_words(["a=x=y"])
