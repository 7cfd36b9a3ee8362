"Every notebook runs from top to bottom in a real Jupyter kernel, half of them from their own folder, half from the top."
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_kernel(path, monkeypatch):
    monkeypatch.setenv("ALEXNET_NB_SMOKE", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, 4)
    folder = path.parent if NOTEBOOKS.index(path) % 2 else ROOT
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_fit_to_be_read(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert "widgets" not in notebook.metadata, "GitHub would show 'Invalid Notebook'"
    assert notebook.metadata["accelerator"] == "GPU", "Colab would open it without a GPU"
    assert path.stat().st_size < 1_500_000
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
