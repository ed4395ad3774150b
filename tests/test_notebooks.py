"""Notebooks hold no outputs, and run from a fresh kernel."""

import json
import pathlib

import pytest

DIRECTORY = pathlib.Path(__file__).parents[1] / "experiments" / "notebooks"
NOTEBOOKS = sorted(DIRECTORY.glob("*.ipynb"))


def test_there_are_three():
    names = [path.stem for path in NOTEBOOKS]
    assert names == ["look_inside", "meta_train", "quickstart"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stripped(path):
    for cell in json.loads(path.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"]
            assert cell["execution_count"] is None


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("L2L_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]
    shown = sum("plotting.draw(" in cell.source for cell in notebook.cells)
    assert len(pictures) == shown > 0
