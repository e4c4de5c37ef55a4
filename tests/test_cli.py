"""The command line: what it writes, says, and exits with."""

from __future__ import annotations

import importlib.util
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import landscapex as lx
from landscapex import cli

COMMANDS = ("demo", "surface", "show", "export", "info", "merge", "doctor")
TRAIN = """
import os
import time

import torch


def build():
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 3)
    model = torch.nn.Sequential(*layers)
    inputs = torch.randn(32, 4)
    return model, (inputs, inputs[:, :3].argmax(1)), "cross_entropy"


def slow():
    model, (inputs, labels), _ = build()

    def loss(model, batch):
        if not os.path.exists("hurry"):
            time.sleep(0.05)
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    return model, [(inputs, labels)], loss


def two():
    return 1, 2


def listed():
    return [1, 2, 3]


def broken():
    raise ZeroDivisionError("in the user's own code")


constant = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with a train.py in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "train", raising=False)
    (tmp_path / "train.py").write_text(TRAIN)
    return tmp_path


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """`command("info", file)` -> (exit status, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["landscapex", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return caught.value.code or 0, captured.out, captured.err

    return run


def user_module():
    """The train.py of the working folder, which is not on the path of this process."""
    spec = importlib.util.spec_from_file_location("user_module", "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def launch(*arguments, **options):
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "landscapex", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_help_takes_less_than_half_a_second():
    def seconds():  # of the processor: other tests run at the same time
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = seconds()
    with launch("--help") as process:
        out, _ = process.communicate()
    assert process.returncode == 0
    assert all(name in out for name in COMMANDS)
    assert seconds() - before < 0.5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command, name):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert "Usage" in out


def test_surface_computes_what_the_function_computes(command):
    arguments = ["--points", "5x3", "--span=-0.5,1", "--seed", "3", "--metric", "accuracy"]
    status, out, _ = command("surface", "train:build", *arguments, "--out", "mine.nc")
    assert status == 0
    train = user_module()
    model, data, loss = train.build()
    expected = lx.surface(
        model, data, loss, points=(5, 3), span=(-0.5, 1), seed=3, metrics="accuracy", progress=False
    )
    result = lx.open("mine.nc")
    assert result.equals(expected)
    assert f"Loss {result.center_loss:.6g} at the centre" in out
    assert f"lowest {result.minimum.value:.6g}" in out
    assert "landscapex show mine.nc" in out


def test_surface_takes_a_checkpoint_and_a_batch_norm_mode(command, folder):
    train = user_module()
    model, data, loss = train.build()
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.save(model.state_dict(), folder / "weights.pt")
    arguments = ["--checkpoint", "weights.pt", "--bn", "batch", "--points", "3"]
    assert command("surface", "train:build", *arguments)[0] == 0
    objective = lx.Objective(model, data, loss, bn="batch")
    assert lx.open("surface.nc").equals(lx.surface(objective, points=3, progress=False))


def test_surface_takes_eigenvectors(command):
    command("surface", "train:build", "--points", 3, "--directions", "hessian")
    found = lx.open("surface.nc")
    assert [a.label.startswith("eigenvector") for a in found.axes] == [True, True]


def test_surface_takes_saved_directions(command):
    train = user_module()
    objective = lx.Objective(*train.build())
    directions = lx.directions.random(objective, 2, seed=9, normalize="layer")
    directions.save("axes.safetensors")
    arguments = ["--points", 3, "--directions", "axes.safetensors"]
    assert command("surface", "train:build", *arguments)[0] == 0
    expected = lx.surface(objective, directions=directions, points=3, progress=False)
    assert np.array_equal(lx.open("surface.nc").loss, expected.loss)


def test_the_last_shard_joins_all(command):
    arguments = ["surface", "train:build", "--points", "7x9", "--out", "s.nc"]
    status, out, _ = command(*arguments, "--shard", "0/2")
    assert status == 0
    assert "This part is kept beside s.nc" in out
    assert "landscapex merge s.nc" in out
    status, _, err = command("merge", "s.nc")
    assert status == 1
    assert err == (
        "Error: 31 of 63 points of s.nc are still missing: 31 of 31 of part 1/2, which has no "
        "journal.\n"
    )
    status, out, _ = command(*arguments, "--shard", "1/2")
    assert status == 0
    assert "Written to s.nc" in out
    assert command("merge", "s.nc")[0] == 0
    assert command(*arguments[:-1], "whole.nc")[0] == 0
    assert lx.open("s.nc").equals(lx.open("whole.nc"))
    assert not list(Path().glob("s.nc.journal*"))


@pytest.mark.parametrize(("variables", "status"), [({}, 75), ({"RANK": 0, "WORLD_SIZE": 2}, 0)])
def test_at_the_time_limit_the_run_stops_and_says_how_to_go_on(
    command, monkeypatch, variables, status
):
    """Status 75 is "try again later" to mailers and batch scripts; torchrun knows errors only."""
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    arguments = ["surface", "train:slow", "--points", "17x17", "--out", "s.nc"]
    began = time.monotonic()
    found, out, err = command(*arguments, "--time-limit", "0:00:02")
    assert time.monotonic() - began < 2
    assert found == status
    kept = int(lx.open("s.nc").evaluated.sum())
    assert 0 < kept < 289
    assert "Written" not in out
    assert f"Stopped at the time limit. {kept} of 289 points are kept beside s.nc." in err
    again = err.splitlines()[-1]
    assert "landscapex surface train:slow --points 17x17 --out s.nc --time-limit 0:00:02" in again
    assert again.startswith("Go on with: torchrun --nproc-per-node 2 -m" if variables else "Go on")


def test_the_time_limit_counts_loading(command, monkeypatch):
    call = cli._call

    def slowly(target):
        time.sleep(1)
        return call(target)

    monkeypatch.setattr(cli, "_call", slowly)
    assert command("surface", "train:slow", "--time-limit", 1.5, "--points", 51)[0] == 75
    assert lx.open("surface.nc").evaluated.sum() < 0.5 / 0.05


def test_a_finished_result_is_kept_unless_told_otherwise(command):
    arguments = ["surface", "train:build", "--points", 3]
    assert command(*arguments)[0] == 0
    before = Path("surface.nc").stat().st_mtime_ns
    assert command(*arguments)[0] == 0
    assert Path("surface.nc").stat().st_mtime_ns == before
    status, _, err = command(*arguments, "--seed", 1)
    assert status == 1
    assert "holds the result of another run; pass --no-resume to replace it" in err
    assert "resume=False" not in err
    assert command(*arguments, "--seed", 1, "--no-resume")[0] == 0
    assert Path("surface.nc").stat().st_mtime_ns > before


def test_a_journal_of_another_run_is_refused_in_words_of_the_command_line(command):
    def stop(progress):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        lx.surface(*user_module().build(), points=3, out="s.nc", progress=False, callback=stop)
    arguments = ["surface", "train:build", "--points", 3, "--seed", 1, "--out", "s.nc"]
    status, _, err = command(*arguments)
    assert status == 1
    assert "Use another `--out`, delete the journal, or pass --no-resume to start over." in err
    assert command(*arguments, "--no-resume")[0] == 0


@pytest.mark.parametrize("kind", ["contour", "3d", None])
def test_show_draws_a_surface(command, kind):
    command("surface", "train:build", "--points", 5, "--metric", "error")
    options = [] if kind is None else ["--kind", kind]
    status, out, _ = command("show", "surface.nc", *options, "--column", "error")
    assert status == 0
    assert "surface.png" in out
    assert Path("surface.png").read_bytes().startswith(b"\x89PNG")


def test_show_draws_a_line_and_refuses_another_kind(command):
    train = user_module()
    lx.line(*train.build(), points=5, out="line.nc", progress=False)
    assert command("show", "line.nc", "--out", "picture.svg")[0] == 0
    assert "<svg" in Path("picture.svg").read_text()
    status, _, err = command("show", "line.nc", "--kind", "3d")
    assert status == 1
    assert "`--kind 3d` does not fit line.nc, which has 1 dimension" in err


def test_info_says_how_a_result_was_made(command):
    command("surface", "train:build", "--points", 3, "--seed", 7)
    status, out, _ = command("info", "surface.nc")
    assert status == 0
    assert "seed: 7" in out
    assert torch.__version__ in out
    assert "cross_entropy" in out


def test_doctor_prints_the_report(command):
    status, out, _ = command("doctor")
    assert status == 0
    assert out.strip() == str(lx.doctor()).strip()


def test_demo_writes_what_it_says(command):
    status, out, _ = command("demo", "--points", 7, "--out", "a folder/demo")
    assert status == 0
    names = ["surface.nc", "surface.png", "surface3d.png", "accuracy.png", "line.png"]
    assert sorted(p.name for p in Path("a folder/demo").iterdir()) == sorted(names)
    assert all(f"{Path('a folder/demo')}/{name}" in out for name in names)
    result = lx.open("a folder/demo/surface.nc")
    assert result.shape == (7, 7)
    assert result["accuracy"][3, 3] == pytest.approx(1)
    assert result.center_loss == pytest.approx(0.0179894, rel=1e-4)
    status, _, _ = command("demo", "--points", 5, "--out", "a folder/demo")  # replaces the first
    assert status == 0
    assert lx.open("a folder/demo/surface.nc").shape == (5, 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["surface", "train"], "`MODULE:FUNCTION` must name a module and a function"),
        (["surface", "train.py:build"], "must name a module, without .py: `train:build`"),
        (["surface", "gone.py:build"], "`gone.py:build`: there is no module 'gone' here"),
        (["surface", "tra in:build"], "got 'tra in:build'"),
        (["surface", "absent:build"], "there is no module 'absent' here"),
        (["surface", "train:absent"], "module 'train' has no function 'absent'"),
        (["surface", "train:constant"], "module 'train' has no function 'constant'"),
        (["surface", "train:two"], r"must return (model, data, loss), got tuple of length 2"),
        (["surface", "train:listed"], "must return (model, data, loss), got list"),
        (["surface", "train:build", "--points", "1"], "`points` must be"),
        (["surface", "train:build", "--points", "5by5"], "`--points` must be N or NxM"),
        (["surface", "train:build", "--points", "5x5x5"], "`--points` must be N or NxM"),
        (["surface", "train:build", "--span", "wide"], "`--span` must be S or LO,HI"),
        (["surface", "train:build", "--shard", "2/2"], "`shard` i/n must have 0 <= i < n"),
        (["surface", "train:build", "--engine", "warp"], "`engine` must be"),
        (["surface", "train:build", "--time-limit", "soon"], "`time_limit` must be a number of"),
        (["surface", "train:build", "--metric", "beauty"], "beauty"),
        (["surface", "train:build", "--checkpoint", "absent.pt"], "`checkpoint` must be a file"),
        (
            ["surface", "train:build", "--directions", "foo"],
            "`--directions` must be random, hessian or a file that Directions.save wrote, got",
        ),
        (["surface", "train:build", "--out", "absent/s.nc"], "absent"),
        (["show", "absent.nc"], "absent.nc"),
        (["show", "train.py"], "train.py"),
        (["info", "absent.nc"], "absent.nc"),
        (["merge", "absent.nc"], "absent.nc"),
    ],
)
def test_an_error_of_ours_is_one_clear_line(command, arguments, message):
    status, _, err = command(*arguments)
    assert status == 1
    assert message in err
    assert err.startswith("Error: ")
    assert "Traceback" not in err


def test_a_warning_of_ours_is_one_line(folder):
    (folder / "flat.py").write_text(
        "import torch\ndef build():\n"
        "    return torch.nn.Linear(2, 2), None, lambda model, batch: torch.tensor(1.0)\n"
    )
    with launch("surface", "flat:build", "--points", "3", cwd=folder) as process:
        _, err = process.communicate()
    assert process.returncode == 0
    assert "Warning: the loss is the same at every point" in err
    assert ".py:" not in err


def test_a_picture_that_cannot_be_written_is_named(command):
    command("surface", "train:build", "--points", 3)
    status, _, err = command("show", "surface.nc", "--out", "picture.docx")
    assert status == 1
    assert "must end in" in err
    assert "picture.docx" in err
    status, _, err = command("show", "surface.nc", "--column", "beauty")
    assert status == 1
    assert "beauty" in err


def test_an_error_of_the_users_own_code_keeps_its_traceback(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["landscapex", "surface", "train:broken"])
    with pytest.raises(ZeroDivisionError, match="in the user's own code"):
        cli.main()
    (folder / "imports.py").write_text("import a_module_that_nobody_has")
    monkeypatch.setattr(sys, "argv", ["landscapex", "surface", "imports:build"])
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has"):
        cli.main()


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"]
)
def test_fault_02_a_signal_stops_the_run_which_then_goes_on(folder, command, signum, status):
    arguments = ["surface", "train:slow", "--points", "17x17", "--out", "s.nc"]
    process = launch(*arguments, cwd=folder)
    deadline = time.monotonic() + 60
    while not _journalled(folder / "s.nc.journal") and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signum)
    _, err = process.communicate(timeout=10)  # all points would take more than 13 seconds
    assert process.returncode == status
    assert "landscapex surface train:slow --points 17x17 --out s.nc" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert "stopped by SIGTERM" not in err  # it is said once, with the command
    partial = lx.open("s.nc")
    kept = int(partial.evaluated.sum())
    assert 0 < kept < 289
    assert f"{kept} of 289 points are kept beside s.nc" in err

    (folder / "hurry").touch()
    assert command(*arguments)[0] == 0
    assert command(*arguments[:-1], "whole.nc")[0] == 0
    assert lx.open("s.nc").equals(lx.open("whole.nc"))


def _journalled(path: Path) -> bool:
    """Whether a chunk of points is in the journal: a line after the header."""
    return path.is_file() and path.read_bytes().count(b"\n") > 1
