"""Names that come from outside stay inside the folder they are put in."""

from pathlib import Path

import pytest

from fedsweep.config import DataConfig, DatasetConfig, TrackingConfig
from fedsweep.data.sources import load_images
from fedsweep.errors import RunnerError
from fedsweep.paths import component, relative
from fedsweep.tracking import ops
from fedsweep.tracking.read import report_folder

OUTSIDE = [
    "../../..",
    "..",
    ".",
    "",
    "/etc",
    "a/b",
    "a\\b",
    "..\\a",
    "C:",
    "C:a",
    "a/",
    "a\0b",
    "a\nb",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_no_single_part_of_a_path_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match="x=.* is no name of a file or folder"):
        component(name, "x")
    with pytest.raises(RunnerError, match="the tag sweep="):
        report_folder(TrackingConfig(output=str(tmp_path)), name, "0" * 32)
    if (
        "/" in name or "\0" in name or name in ("", ".", "..")
    ):  # else a folder of this system may have it
        data = DataConfig(root=str(tmp_path), cache=str(tmp_path / "cache"))
        with pytest.raises(RunnerError, match="dataset.name="):
            load_images(DatasetConfig().model_copy(update={"name": name}), data)


@pytest.mark.parametrize("name", ["mnist", "a b", "..a", "a..b", "données", "$x", "<b>", "it's"])
def test_other_names_are_kept(name: str, tmp_path: Path) -> None:
    assert component(name, "x") == name
    assert (tmp_path / name).parent == tmp_path
    assert relative(f"plots/{name}", "x") == f"plots/{name}"


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128])
def test_a_name_that_no_file_may_have_is_refused(name: str) -> None:
    with pytest.raises(
        RunnerError, match="x='.*….*' has 256 bytes; the name of a file has 255 at most"
    ):
        component(name, "x")
    assert component(name[:-1], "x") == name[:-1]


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out.txt", "a//out.txt"])
def test_files_of_a_run_are_written_below_its_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(RunnerError, match="is no name of a file or folder"):
        ops._write(tmp_path / "run", {name: b"x"})
    assert [path.name for path in tmp_path.rglob("*")] == ["run"]
