"""The format by the suffix, in Python and on the command line."""

from __future__ import annotations

import re
import sys
from importlib.util import find_spec

import h5py
import numpy as np
import pytest
from export_cases import hide, make, plane

import landscapex as lx
from landscapex import cli, export
from landscapex.errors import ArgumentError, CorruptFileError
from landscapex.export.formats import SUFFIXES

BEGIN = {
    ".html": b"<!DOCTYPE html>", ".htm": b"<!DOCTYPE html>", ".csv": b"# landscapex",
    ".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF", ".vts": b'<?xml version="1.0"?>\n<!--',
    ".h5": b"landscapex export", ".hdf5": b"landscapex export", ".nc": b"landscapex result",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a result in it."""
    monkeypatch.chdir(tmp_path)
    x, y = np.arange(3.0), np.arange(5.0)
    make({"loss": 10 * x[:, None] + y, "accuracy": x[:, None] * y}, x, y).save("ö.nc")
    return tmp_path


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """`command("ö.nc", "s.csv")` -> (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["landscapex", "export", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_written(folder, suffix):
    if suffix == ".vts":
        pytest.importorskip("pyevtk", reason="needs pyevtk")
    path = export.convert("ö.nc", f"Bild ☃{suffix.upper()}")
    assert path == folder / f"Bild ☃{suffix.upper()}"
    assert path.read_bytes().startswith(BEGIN[suffix])


def test_the_command_writes_and_says_where(command):
    status, out, _ = command("ö.nc", "s.csv")
    assert (status, out) == (0, "Written to s.csv.\n")
    status, _, _ = command("ö.nc", "s.html", "--column", "accuracy", "--scale", "linear")
    assert status == 0
    with open("s.html", encoding="utf-8") as page:
        assert "accuracy (linear scale)" in page.read()


def test_files_of_loss_landscape_become_results(command):
    with h5py.File("theirs.h5", "w") as file:
        file["xcoordinates"], file["ycoordinates"] = np.arange(3.0), np.arange(5.0)
        file["train_loss"] = np.add.outer(np.arange(5.0), 10 * np.arange(3.0)).reshape(3, 5)
    assert command("theirs.h5", "mine.nc")[0] == 0
    assert lx.open("mine.nc").equals(plane())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["ö.nc", "s.xyz"],
            "`target` must end in one of .html, .htm, .vts, .png, .svg, .pdf, .csv",
        ),
        (["ö.nc", "s"], "`target` must end in one of"),
        (["ö.nc", "s.csv", "--column", "loss"], "`column` must not be given for .csv, which holds"),
        (["ö.nc", "s.h5", "--scale", "log"], "`scale` must not be given for .h5, which holds all"),
        (["ö.nc", "s.png", "--column", "beauty"], "`column` must be one of loss, accuracy"),
        (["absent.nc", "s.csv"], "absent.nc"),
        (["absent.h5", "s.csv"], "absent.h5 must be a regular file"),
    ],
)
def test_what_cannot_be_exported_is_one_clear_line(command, folder, arguments, message):
    status, _, err = command(*arguments)
    assert status == 1
    assert message in err
    assert err.startswith("Error: ")
    assert [path.name for path in folder.iterdir()] == ["ö.nc"]


def test_fault_29_a_missing_extra_is_one_line_with_its_command(command, monkeypatch):
    hide(monkeypatch, "plotly")
    status, _, err = command("ö.nc", "s.html")
    assert status == 1
    assert "pip install 'landscapex[interactive]'" in err


@pytest.mark.parametrize("suffix", [s for s in (*SUFFIXES, ".jpg", ".jpeg") if s != ".nc"])
@pytest.mark.parametrize("big", [False, True])
def test_a_result_is_not_written_under_the_name_of_another_format(folder, suffix, big):
    result, name = lx.open("ö.nc"), "s" + (suffix.upper() if big else suffix)
    message = rf"must be the name of a NetCDF file, say s\.nc; \{suffix} is written .* by `(.*)` or"
    with pytest.raises(ArgumentError, match=rf"^`path` {message}") as caught:
        result.save(name)
    with pytest.raises(ArgumentError, match=rf"^`out` {message}"):
        lx.surface(*lx.examples.digits(), out=name, progress=False)
    assert [path.name for path in folder.iterdir()] == ["ö.nc"]
    named = re.search(message, str(caught.value))[1]
    if named == "landscapex.plot.save":
        lx.plot.save(result.plot(), name)
    elif suffix != ".vts" or find_spec("pyevtk"):
        getattr(result, named)(name)
        assert (folder / name).read_bytes().startswith(BEGIN[suffix])


def test_what_is_no_result_is_refused(folder):
    with pytest.raises(CorruptFileError):
        export.convert(__file__, "s.csv")
    with pytest.raises(ArgumentError, match=r"got 's\.docx'"):
        export.convert("ö.nc", "s.docx")
