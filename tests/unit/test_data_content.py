"""The content of the data is a part of a trial's identity; its place is not."""

import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsweep.cli import main
from fedsweep.config import DataConfig, DatasetConfig, RunConfig
from fedsweep.data.sources import load_images
from fedsweep.errors import ConfigError, DataError, RunnerError
from fedsweep.records import RoundRecord
from fedsweep.sweeps import kinds
from fedsweep.sweeps.compose import Trial, compose, expand, with_contents
from fedsweep.sweeps.prepare import prepare_inline
from fedsweep.sweeps.resume import Restart
from fedsweep.trial.trial import run_trial
from tests.unit.test_sweep import Place

OLD = 1_700_000_000  # a file that did not change lately


def picture(value: int) -> bytes:
    file = io.BytesIO()
    pixels = np.full((4, 4), value, np.uint8)
    pixels[0, 0] = 255 - value
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def pictures(root: Path, shift: int = 0) -> Path:
    """A data root with the set ``pets``: two classes, 20 images each to train on, 4 to test on."""
    for split, count in (("train", 20), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            folder = root / "pets" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for image in range(count):
                path = folder / f"{image:02}.png"
                path.write_bytes(picture(100 * number + image + shift))
                os.utime(path, (OLD, OLD))
    return root


def pets(root: Path, *words: str) -> list[str]:
    return [
        "dataset=folder", "dataset.name=pets", f"data.root={root}",
        f"data.cache={root.parent / 'cache'}", *words
    ]  # fmt: skip


def content(root: Path) -> str:
    found = compose(pets(root)).dataset.content
    assert found is not None
    return found


def test_equal_content_is_one_trial_wherever_it_lies(tmp_path: Path) -> None:
    a, b, copy = pictures(tmp_path / "a"), pictures(tmp_path / "b", shift=1), tmp_path / "copy"
    shutil.copytree(a, copy)
    keys = [compose(pets(root)).key for root in (a, b, copy)]
    assert keys[0] == keys[2] != keys[1]
    by_path = [
        f"dataset.path={copy / 'pets'}",
        "dataset.name=pets",
        f"data.cache={tmp_path / 'cache'}",
    ]
    assert compose(["dataset=folder", *by_path]).key == keys[0]
    assert compose(pets(a)).settings_key == compose(pets(b)).settings_key
    assert compose(pets(a, "seed=1")).settings_key != compose(pets(a)).settings_key


def test_a_root_is_an_axis_by_its_content(tmp_path: Path) -> None:
    a, b, copy = pictures(tmp_path / "a"), pictures(tmp_path / "b", shift=1), tmp_path / "copy"
    shutil.copytree(a, copy)
    words = ["shift=none", "partition=iid", "strategy=fedavg", "seed=0", *pets(a)]
    _, trials = expand("default", [*words, f"data.root={a},{b},{copy}"])
    assert [trial.axes["data.root"] for trial in trials] == [str(a), str(b)]


def test_what_is_read_is_the_content(tmp_path: Path) -> None:
    """Names of files do not count, their order and their classes do; what is left out does not."""
    root = pictures(tmp_path / "a")
    train, before = root / "pets/train", content(root)
    (train / "cat/19.png").rename(train / "cat/20.png")
    (root / "pets/read me.txt").write_text("new")
    (train / ".DS_Store").write_text("junk")
    assert content(root) == before
    for moved in (train / "cat/000.png", train / "dog/20.png"):
        (train / "cat/20.png").rename(moved)
        assert content(root) != before
        moved.rename(train / "cat/20.png")
    assert content(root) == before
    (train / "cat").rename(train / "fox")
    (root / "pets/test/cat").rename(root / "pets/test/fox")
    assert content(root) != before


def test_a_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(tmp_path / "a")
    hashed = []
    real = hashlib.file_digest

    def counted(file: Any, algorithm: str) -> Any:
        hashed.append(Path(file.name).relative_to(root))
        return real(file, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    before = content(root)
    assert len(hashed) == 48
    assert (content(root), len(hashed)) == (before, 48)
    changed = root / "pets/train/dog/03.png"
    changed.write_bytes(picture(7))
    os.utime(changed, (OLD + 1, OLD + 1))
    assert content(root) != before
    assert hashed[48:] == [changed.relative_to(root)]


def test_a_file_that_changes_twice_in_a_moment_is_seen(tmp_path: Path) -> None:
    """Same size, same time: a file that is younger than the clock is coarse is hashed again."""
    root = pictures(tmp_path / "a")
    path = root / "pets/train/dog/03.png"
    found = set()
    stamp = None
    for value in (1, 2):
        path.write_bytes(picture(value).ljust(200, b"\0"))
        stamp = stamp or path.stat().st_mtime_ns
        os.utime(path, ns=(stamp, stamp))
        found.add(content(root))
    assert len(found) == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b'{"pets/train/cat/00.png": 3}', b"\xff"])
def test_a_damaged_cache_of_hashes_is_made_again(tmp_path: Path, damage: bytes) -> None:
    root = pictures(tmp_path / "a")
    before = content(root)
    for path in (tmp_path / "cache/contents").iterdir():
        path.write_bytes(damage)
    assert content(root) == before


def test_equal_content_is_decoded_once(tmp_path: Path) -> None:
    a, copy, cache = pictures(tmp_path / "a"), tmp_path / "copy", tmp_path / "cache"
    shutil.copytree(a, copy)
    sets = [
        load_images(DatasetConfig(name="pets"), DataConfig(root=str(root), cache=str(cache)))
        for root in (a, copy)
    ]
    assert len([path for path in cache.iterdir() if path.name.startswith("pets-")]) == 1
    assert sets[0].fingerprint == sets[1].fingerprint
    assert [images.source for images in sets] == [str(a / "pets"), str(copy / "pets")]
    assert str(copy / "pets") in sets[1].told


def test_a_content_that_is_given_must_be_there(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    given = f"dataset.content={content(root)}"
    assert compose(pets(root, given)).key == compose(pets(root)).key
    (root / "pets/train/dog/03.png").write_bytes(picture(7))
    with pytest.raises(ConfigError, match=r"dataset\.content=.*train/dog/03\.png \(changed\)"):
        compose(pets(root, given))


def test_data_that_change_after_the_key_was_made_are_refused(tmp_path: Path) -> None:
    root = pictures(tmp_path / "a")
    trial = Trial(compose(pets(root, "resources=inline")), {}, ())
    (root / "pets/train/dog/03.png").unlink()
    with pytest.raises(DataError, match=r"has changed since.*train/dog/03\.png \(gone\)"):
        prepare_inline([trial])
    with pytest.raises(DataError, match=r"content of data set 'digits' is not known"):
        prepare_inline([Trial(RunConfig(), {}, ())])


def test_a_data_set_that_is_not_there_composes_and_does_not_run(tmp_path: Path) -> None:
    words = ["dataset=folder", f"data.root={tmp_path}"]
    config = compose(words)
    assert config.dataset.content is None
    with pytest.raises(DataError, match="'folder' can't be had"):
        load_images(config.dataset, config.data)


def test_digits_are_known_by_their_file_without_the_package() -> None:
    config = compose([])
    assert config.dataset.content == load_images(config.dataset, config.data).content


def test_the_hub_is_asked_before_a_trial_runs_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def dataset_info(_: Any, repo: str, *, revision: str, timeout: float) -> SimpleNamespace:
        asked.append(f"{repo}@{revision}")
        return SimpleNamespace(sha=f"commit {len(asked)}")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", dataset_info)
    words = ["dataset=hub", "dataset.id=me/pets", f"data.cache={tmp_path}"]
    config = compose(words)
    assert (config.dataset.content, asked) == (None, [])
    [trial] = with_contents([Trial(config, {}, ())])
    assert asked == ["me/pets@main"]
    assert compose(words).key == trial.config.key != config.key  # it is remembered
    other = compose([*words, "dataset.train=data/a.parquet", "dataset.test=data/b.parquet"])
    assert other.key != trial.config.key  # a commit holds all files
    [pinned] = with_contents(
        [Trial(compose([*words[:1], "dataset.id=me/pets@v2", words[2]]), {}, ())]
    )
    assert asked == ["me/pets@main", "me/pets@v2"]
    assert pinned.config.dataset.content != trial.config.dataset.content


def test_a_dry_run_says_where_a_key_is_not_the_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset=hub", "dataset.id=me/pets", f"data.cache={tmp_path}"]
    assert main(["sweep", "default", "seed=0", "--dry-run", *words]) == 0
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == "their keys will be others once the data are found: hub"
    )


# Sweeps


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Place:
    shutil.copy(template, tmp_path / "mlflow.db")
    return Place(tmp_path)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Have the next trial be interrupted after its first round."""

    def set_up() -> None:
        left = [1]

        def cut_off(*args: Any, **kwargs: Any) -> Iterator[Any]:
            for event in run_trial(*args, **kwargs):
                yield event
                if isinstance(event, RoundRecord) and event.round == 1 and left[0]:
                    left[0] -= 1
                    raise KeyboardInterrupt

        monkeypatch.setattr(kinds, "run_trial", cut_off)

    return set_up


@pytest.mark.parametrize("alone", [False, True])
def test_another_content_is_another_trial(place: Place, tmp_path: Path, alone: bool) -> None:
    a, b, copy = pictures(tmp_path / "a"), pictures(tmp_path / "b", shift=90), tmp_path / "copy"
    shutil.copytree(a, copy)
    words = [] if alone else ["seed=0"]
    first, text = place.run(*pets(a), *words, alone=alone)
    said = text.splitlines()
    [told] = [
        number
        for number, line in enumerate(said)
        if line.startswith(f"data set 'pets', {a / 'pets'}: 40 images")
    ]
    assert "8 images to test on (test, 8 files); 2 classes (cat: 20, dog: 20)" in said[told]
    assert told < min(number for number, line in enumerate(said) if "rounds in all" in line)
    other, text = place.run(*pets(b), *words, alone=alone)
    assert "run before" not in text
    assert len(place.runs()) == 2
    assert other.rows != first.rows
    if not alone:
        again, text = place.run(*pets(copy), *words)
        assert "run before: 1 finished, 0 failed; 0 to run" in text
        assert again.rows == first.rows


@pytest.mark.parametrize("alone", [False, True])
def test_data_that_changed_since_an_interruption_are_refused(
    place: Place,
    tmp_path: Path,
    interrupted: Callable[[], None],
    alone: bool,
) -> None:
    root = pictures(tmp_path / "a")
    words = [*pets(root), "rounds=3", *([] if alone else ["seed=0"])]
    undisturbed, _ = place.run(*words, alone=alone, restart=Restart(fresh=True))
    interrupted()
    outcome, _ = place.run(*words, alone=alone, restart=Restart(fresh=True))
    assert outcome.exit_status == 130
    path = root / "pets/train/dog/03.png"
    was = path.read_bytes()
    path.write_bytes(picture(7))
    with pytest.raises(DataError) as refused:
        place.run(*words, alone=alone)
    message = str(refused.value)
    assert "changed since it was interrupted" in message
    assert (
        f"in {root / 'pets'}: train/dog/03.png (changed); put them back, or add --fresh" in message
    )
    assert "\n" not in message
    path.write_bytes(was)
    outcome, text = place.run(*words, alone=alone)
    assert "goes on after round 1" in text
    assert outcome.rows[0].metrics["acc"] == undisturbed.rows[0].metrics["acc"]
    path.write_bytes(picture(7))
    outcome, text = place.run(*words, alone=alone)
    assert f"run before on other content of {root / 'pets'} (train/dog/03.png (changed))" in text
    assert "goes on" not in text
    assert outcome.exit_status == 0


def test_trials_of_an_earlier_version_are_refused_in_one_line(place: Place) -> None:
    """They do not say what their data were: not taken for ours, nor run again in silence."""
    place.run("seed=0")
    [run] = place.runs()
    for tag in ("data.content", "data.place", "trial.settings"):
        place.client.delete_tag(run.info.run_id, tag)
    place.client.set_tag(run.info.run_id, "trial.key", "0123456789ab")
    with pytest.raises(
        RunnerError, match=r"of sweep 'default' was made by an earlier version.*add --fresh"
    ):
        place.run("seed=0")
    place.run("seed=1")  # what it has not run is free
    outcome, _ = place.run("seed=0", restart=Restart(fresh=True))
    assert outcome.exit_status == 0
