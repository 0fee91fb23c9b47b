"""The notebook runs as it stands, on a tiny artifact, and holds no folder of whoever made it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import compress

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "student.ipynb"


def test_what_is_stored_is_small_and_names_no_folder():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert len(text) < 300_000
    assert all(cell["outputs"] for cell in cells if cell["cell_type"] == "code")
    outputs = json.dumps([cell.get("outputs") for cell in cells if cell["cell_type"] == "code"])
    assert not re.search(r"/(home|root|tmp|Users)/", outputs)
    assert "Error" not in outputs


@pytest.mark.slow
def test_it_runs_on_another_artifact(recipe, tmp_path, monkeypatch):
    import nbformat
    from nbclient import NotebookClient

    sizes = {"num_attention_heads": 8, "head_dim": 8}  # not compiled, which would take long
    made = recipe("[{quantize: {method: rtn, bits: 4, group_size: 32}}]", **sizes)
    compress.apply(made, tmp_path / "tiny", device="cpu")
    monkeypatch.setenv("COMPRESS_NOTEBOOK_ARTIFACT", str(tmp_path / "tiny"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 4
