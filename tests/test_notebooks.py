"""Every notebook is fit to be read.

That each runs in a kernel and gives what is stored is checked by tools/rerun.py, which tests/run_all.py runs.
"""
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
from notebooks import all_notebooks, name_of


@pytest.mark.parametrize("path", all_notebooks(), ids=name_of)
def test_is_fit_to_be_read(path):
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    ids = [cell["id"] for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert "widgets" not in notebook.metadata, "GitHub would show 'Invalid Notebook'"
    assert notebook.metadata["accelerator"] == "GPU", "Colab would open it without a GPU"
    assert path.stat().st_size < 1_500_000
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "error"]
