"""A trial's tables in few files, whatever happens between two rounds."""

from pathlib import Path

import pandas as pd
import pytest

from fedsweep.records import RoundRecord
from fedsweep.tracking.tables import PART_ROWS, Parts, rounds_a_part


def record(number: int, **clients: list) -> RoundRecord:
    columns = {"round": [number, number], "client": [0, 1], **clients}
    return RoundRecord(round=number, metrics={}, clients=columns)


def written(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_rounds_share_parts_of_about_so_many_rows() -> None:
    assert [rounds_a_part(clients) for clients in (1, 4, 1000, 10**6)] == [PART_ROWS, 500, 2, 1]


@pytest.mark.parametrize("killed_after", [None, 0, 2, 3, 4])
def test_a_session_that_goes_on_completes_the_part_it_finds(
    tmp_path: Path, killed_after: int | None
) -> None:
    """The one before may have written a round's rows, and not that the round was logged."""
    before = Parts(3)
    for number in range((-1 if killed_after is None else killed_after) + 2):
        written(tmp_path, before.add(record(number)))
    after = Parts(3)
    for number in range(8):
        written(tmp_path, after.add(record(number)))
        written(tmp_path, after.add(record(number)))  # a writer that tries again
    names = sorted(path.name for path in (tmp_path / "clients.parquet").iterdir())
    assert names == ["part-00000.parquet", "part-00003.parquet", "part-00006.parquet"]
    table = pd.read_parquet(tmp_path / "clients.parquet")
    assert table["round"].tolist() == [number for number in range(8) for _ in range(2)]


def test_columns_that_come_later_are_empty_before(tmp_path: Path) -> None:
    parts = Parts(10)
    for number in range(3):
        later = {"cluster": [0, 1]} if number else {}
        written(tmp_path, parts.add(record(number, acc=[0.5, number], **later)))
    table = pd.read_parquet(tmp_path / "clients.parquet")
    assert table["acc"].tolist() == [0.5, 0.0, 0.5, 1.0, 0.5, 2.0]
    assert table["cluster"].isna().tolist() == [True, True, False, False, False, False]
    assert table["cluster"].tolist()[2:] == [0, 1, 0, 1]
