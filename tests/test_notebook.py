"""The notebook of the documentation: stored without outputs, and it runs from top to bottom.

Everywhere as plain code; in a real kernel where `nbclient` is installed, as for ``make check``.
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

TOUR = Path(__file__).parents[1] / "docs" / "notebooks" / "tour.ipynb"
PICTURES = 8  # cells that end with one


@cache
def cells() -> list[dict[str, Any]]:
    return json.loads(TOUR.read_text())["cells"]


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_outputs_are_not_stored():
    for cell in cells():
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_text_names_no_machine():
    metadata = json.loads(TOUR.read_text())["metadata"]
    assert metadata["kernelspec"]["name"] == "python3"
    assert metadata["language_info"] == {"name": "python"}  # any version of it


def test_every_cell_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    namespace: dict[str, Any] = {}
    for k, cell in enumerate(cells()):
        if cell["cell_type"] == "code":
            exec(compile(source(cell), f"cell {k}", "exec"), namespace)
    torch.set_rng_state(state)  # it sets seeds, as notebooks do
    assert {p.name for p in tmp_path.iterdir()} >= {"surface.nc", "surface.png", "run"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_in_a_kernel_pictures_and_results_are_shown(tmp_path):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(TOUR, as_version=4)
    nbformat.validate(notebook)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=120, resources=where).execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    shown = [o["data"] for o in outputs if o["output_type"] == "execute_result"]
    assert sum("image/png" in data for data in shown) == PICTURES
    result = next(data for data in shown if "Surface of 31 x 31 points" in data["text/plain"])
    assert "<img" in result["text/html"]
    said = [line for o in outputs if o.get("name") == "stderr" for line in o["text"].splitlines()]
    warned = [line for line in said if "Warning" in line]
    assert [line for line in warned if "compiled kernels" not in line] == []  # not from source


@pytest.mark.slow
def test_fault_02_the_stop_button_leaves_what_there_is(tmp_path):
    """Interrupted as Jupyter does it, while a cell runs; the next cell finds the points."""
    pytest.importorskip("ipykernel")
    manager, kernel = pytest.importorskip("jupyter_client.manager").start_new_kernel(cwd=tmp_path)
    try:
        prepare = (
            "import sys, pathlib, landscapex as lx; model, data, loss = lx.examples.digits();"
            "before = {n: t.clone() for n, t in model.state_dict().items()}"
        )
        assert kernel.execute(prepare, reply=True, timeout=60)["content"]["status"] == "ok"
        kernel.execute(
            "lx.surface(model, data, loss, points=301, engine='eager', progress=False,"
            "           callback=lambda p: pathlib.Path('began').touch())"
        )
        wait_for(tmp_path / "began")
        asked = time.monotonic()
        manager.interrupt_kernel()
        stopped = kernel.get_shell_msg(timeout=60)["content"]
        assert time.monotonic() - asked < 10
        assert stopped["ename"] == "KeyboardInterrupt"
        assert "points are in `.surface`" in stopped["evalue"]
        look = (
            "kept = sys.last_value.surface;"
            "assert 0 < kept.evaluated.sum() < kept.loss.size;"
            "assert all(t.equal(before[n]) for n, t in model.state_dict().items())"
        )
        found = kernel.execute(look, reply=True, timeout=60)["content"]
        assert found["status"] == "ok", found
    finally:
        kernel.stop_channels()
        manager.shutdown_kernel(now=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.05)
