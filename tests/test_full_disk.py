"""A disk that fills up while a surface is computed; journals by themselves: test_journal_damage."""

from __future__ import annotations

import contextlib
import errno
import re

import models
import numpy as np
import pytest
import reference
from evaluate_cases import BATCH, mse
from storage import file_size_limit

import landscapex as lx
from landscapex.errors import OutputError
from landscapex.grids import filling


def test_fault_03_a_full_disk_ends_a_surface_which_goes_on_when_there_is_room(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(filling, "BLOCK_SECONDS", 0.0)  # point by point
    model, out = models.mlp(3, 4, 1), tmp_path / "s.nc"
    journal = tmp_path / "s.nc.journal"
    options = {"points": (5, 7), "progress": False, "out": out}
    before = reference.everything(model)
    disk = contextlib.ExitStack()

    def callback(progress):
        if progress.done == 20:  # half a line still fits
            disk.enter_context(file_size_limit(journal.stat().st_size + 20))

    with disk, pytest.raises(OutputError, match="could not be written") as caught:
        lx.surface(model, BATCH, mse, callback=callback, **options)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == errno.EFBIG
    said = re.search(r"About ([\d,]+) bytes are needed for the rest", str(caught.value))
    assert 15 * 20 < int(said[1].replace(",", "")) < 1_000_000
    assert str(journal) in str(caught.value)
    assert "the 20 of 35 points written so far are kept" in str(caught.value)
    assert reference.changes(before, reference.everything(model)) == []
    assert [p.name for p in tmp_path.iterdir()] == ["s.nc.journal"]
    assert journal.read_bytes().endswith(b"]]}\n")
    kept, truth = lx.open(out), lx.surface(model, BATCH, mse, **{**options, "out": None})
    assert kept.evaluated.ravel().tolist() == [k < 20 for k in range(35)]
    assert np.array_equal(kept.loss[kept.evaluated], truth.loss[kept.evaluated])
    assert lx.surface(model, BATCH, mse, **options).equals(truth)
