"""The page on Python, run as a notebook: in a kernel of its own, its blocks as they are printed."""

import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.patience import PATIENCE_S

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


def test_the_page_runs_as_a_notebook(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) > 4
    last = (
        "print(sorted(path.name for path in __import__('pathlib').Path('outputs/own').iterdir()))"
    )
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(block) for block in [*blocks, last]]

    client = NotebookClient(
        notebook, timeout=int(PATIENCE_S), resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()

    first, damped = (_shown(notebook.cells[i]) for i in (0, 3))
    assert re.search("<table.*fedprox", first["html"], re.DOTALL), "Results show themselves"
    assert "6 of 6 trials" in first["line"], "the line was brought up to date"
    assert "Damped" in damped["html"]
    assert "Damped.py" in _shown(notebook.cells[-1])["text"]


def _shown(cell: nbformat.NotebookNode) -> dict[str, str]:
    """Return what a cell shows: its printed text, its last line of progress, its HTML."""
    shown = {"text": "", "line": "", "html": ""}
    for output in cell.outputs:
        data = output.get("data", {})
        shown["text"] += output.get("text", "")
        shown["html"] += data.get("text/html", "")
        if output.output_type == "display_data":
            shown["line"] = data.get("text/plain", "")
    return shown
