"""The notebook runs from top to bottom on the demo model, and carries the outputs of such a run."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[2] / "examples"


def check(notebook):
    """Five answers, of which only the first is cut, and three plots; no warnings."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    found = [output for cell in cells for output in cell.outputs]
    text = "".join(output.text for output in found if output.get("name") == "stdout")
    assert text.startswith("demo, in NF4, computes in torch.")
    ends = re.findall(r"\[(length|stop), (\d+) tokens\]", text)
    assert [how for how, _ in ends] == ["length", "stop", "stop", "stop", "stop"]
    assert max(int(tokens) for _, tokens in ends) == 96
    assert sum("image/png" in output.get("data", {}) for output in found) == 3
    assert not [output for output in found if output.get("name") == "stderr"]


@pytest.fixture
def notebook():
    return nbformat.read(EXAMPLES / "llama_2_t4.ipynb", as_version=4)


def test_the_notebook_carries_the_outputs_of_a_run(notebook):
    nbformat.validate(notebook)
    check(notebook)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(notebook, converted_models, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the demo model, also where there is a GPU
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    folder = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", resources=folder).execute()
    check(notebook)
