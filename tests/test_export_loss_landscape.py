"""Files of the code of Li et al.: what it writes is read, and what is written it reads right.

The code itself is followed here from its own loops, index by index.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from export_cases import PLACES, make, plane, volume

import landscapex as lx
from landscapex import export
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    DirectionError,
    LandscapexWarning,
    OutputError,
    ParameterMismatchError,
)

X, Y = np.array([-1.0, 0.5, 2.0]), np.array([0.0, 0.25, 1.0, 3.0, 7.0])


def f(x, y):
    return 10 * x + y + 20


def their_surface(path, x, y, steps=None, **extra):
    """What plot_surface.py leaves behind after so many points: all, if None."""
    with h5py.File(path, "w") as file:
        file["dir_file"] = "model_300.t7_weights_xignore=biasbn_xnorm=filter.h5"
        file["xcoordinates"] = x
        file["ycoordinates"] = y
        losses, accuracies = (-np.ones((len(x), len(y))) for _ in range(2))
        mesh_x, mesh_y = np.meshgrid(x, y)
        for index in range(losses.size)[:steps]:
            losses.ravel()[index] = f(mesh_x.ravel()[index], mesh_y.ravel()[index])
            accuracies.ravel()[index] = mesh_x.ravel()[index] + 50
        file["train_loss"] = losses
        file["train_acc"] = accuracies
        for name, values in extra.items():
            file[name] = values
    return path


def their_picture(path, name="train_loss"):
    """X, Y and Z that plot_2D.py hands to matplotlib, which must agree in shape."""
    with h5py.File(path, "r") as file:
        mesh_x, mesh_y = np.meshgrid(file["xcoordinates"][:], file["ycoordinates"][:])
        values = file[name][:]
    assert values.shape == mesh_x.shape == mesh_y.shape
    return mesh_x, mesh_y, values


# ---------------------------------------------------------------- reading surfaces


@pytest.mark.parametrize("y", [Y, Y[:3]], ids=["3x5", "3x3"])
def test_trap_05_their_values_come_to_their_places(tmp_path, y):
    """Their arrays have the shape (x, y) and the order [y, x]: 3 x 5 looks scrambled."""
    surface = export.read_h5(their_surface(tmp_path / "s.h5", X, y))
    np.testing.assert_array_equal(surface.loss, f(X[:, None], y))
    np.testing.assert_array_equal(surface["accuracy"], (X[:, None] + 50 + 0 * y) / 100)
    assert (surface.kind, surface.columns) == ("surface", ("loss", "accuracy"))
    assert surface.complete
    assert surface.axes[1].label == "ydirection"
    assert "xnorm=filter" in surface.axes[0].unit
    assert surface.provenance["dir_file"].startswith("model_300.t7")


def test_trap_06_what_they_did_not_compute_is_missing(tmp_path):
    surface = export.read_h5(their_surface(tmp_path / "s.h5", X, Y, steps=7))
    done = np.arange(15).reshape(5, 3).T < 7
    np.testing.assert_array_equal(surface.evaluated, done)
    np.testing.assert_array_equal(surface.loss, np.where(done, f(X[:, None], Y), np.nan))


def test_trap_06_a_loss_of_minus_one_is_a_loss(tmp_path):
    """Their -1 stands in the accuracy, too; values of 0 and below are results."""
    x = np.array([0.0, 1.0, 2.0, 3.0])
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["xcoordinates"] = x
        file["train_loss"], file["train_acc"] = [-1.0, -1.0, 0.0, np.nan], [-1.0, 10.0, 0.0, 0.0]
    surface = export.read_h5(tmp_path / "s.h5")
    assert surface.kind == "line"
    np.testing.assert_array_equal(surface.evaluated, [False, True, True, True])
    np.testing.assert_array_equal(surface.loss, [np.nan, -1.0, 0.0, np.nan])


def test_what_was_computed_in_part_is_nan_there_with_a_warning(tmp_path):
    test = -np.ones((3, 5))
    test.ravel()[:4] = 3.5
    eigenvalues = {"min_eig": np.ones((3, 5)), "max_eig": -np.ones((3, 5))}
    eigenvalues["min_eig"].ravel()[0], eigenvalues["max_eig"].ravel()[0] = -1.0, 5.0
    path = their_surface(tmp_path / "s.h5", X, Y, test_loss=test, test_acc=test, **eigenvalues)
    with pytest.warns(LandscapexWarning) as caught:
        surface = export.read_h5(path)
    said = sorted(str(w.message) for w in caught)
    assert said == [
        "11 of 15 points have no test values: they are NaN.",
        "14 of 15 points have no eigenvalue values: they are NaN.",
    ]
    assert surface.complete
    assert np.isnan(surface["test_loss"]).sum() == np.isnan(surface["test_accuracy"]).sum() == 11
    assert (surface["test_loss"][0, 0], surface["test_accuracy"][0, 0]) == (3.5, 0.035)
    assert (surface["smallest"][0, 0], surface["largest"][0, 0]) == (-1.0, 5.0)
    assert np.isnan(surface["smallest"]).sum() == 14


def test_other_arrays_are_columns_if_they_have_a_number_per_point(tmp_path):
    own = np.arange(15.0).reshape(5, 3)
    path = their_surface(
        tmp_path / "s.h5", X, Y, own=own, other=np.ones(4), alpha=own, accuracy=own
    )
    surface = export.read_h5(path)
    assert surface.columns == ("loss", "own", "accuracy")  # as the file has them
    np.testing.assert_array_equal(surface["own"], own.T)


# ---------------------------------------------------------------- writing surfaces


def test_trap_05_their_pictures_show_each_value_at_its_place(tmp_path):
    mesh_x, mesh_y, values = their_picture(plane().to_h5(tmp_path / "s.h5"))
    np.testing.assert_array_equal(values, 10 * mesh_x + mesh_y)


def test_trap_06_they_go_on_with_the_points_that_are_missing(tmp_path):
    surface = make(10 * X[:, None] + Y + 20, X, Y, done=np.arange(15) % 4 > 0)
    with h5py.File(surface.to_h5(tmp_path / "s.h5"), "r") as file:
        values = file["train_loss"][:]
    todo = np.flatnonzero(values.ravel() <= 0)
    mesh_x, mesh_y = np.meshgrid(X, Y)
    found = set(zip(mesh_x.ravel()[todo], mesh_y.ravel()[todo], strict=True))
    assert found == {(X[i], Y[j]) for i, j in np.argwhere(~surface.evaluated)}


def test_a_surface_comes_back_as_it_was(tmp_path):
    rng = np.random.default_rng(0)
    columns = {name: rng.normal(size=35) for name in ("loss", "test_loss", "accuracy", "own")}
    columns["loss"][[3, 4]] = np.nan, np.inf
    columns["accuracy"] = rng.integers(0, 128, 35) / 128
    surface = make(columns, *PLACES[2], done=np.arange(35) != 8, seed=3)
    path = surface.to_h5(tmp_path / "Fläche ☃.h5", directions="axes.h5")
    back = export.read_h5(path)
    assert back.equals(surface)
    assert back.axes == surface.axes
    assert surface.provenance.items() <= back.provenance.items()
    with h5py.File(path, "r") as file:
        assert file["dir_file"][()] == b"axes.h5"
        percent = file["train_acc"][:]
    there = surface.evaluated.T
    np.testing.assert_array_equal(percent[there], 100 * surface["accuracy"].T[there])
    line = make(np.where(np.arange(9) == 4, np.nan, 1.0), *PLACES[1])
    assert export.read_h5(line.to_h5(tmp_path / "line.h5")).equals(line)


def test_the_same_surface_gives_the_same_file_and_theirs_is_kept(tmp_path):
    first, again = (plane().to_h5(tmp_path / "s.h5").read_bytes() for _ in range(2))
    assert first == again
    theirs = their_surface(tmp_path / "theirs.h5", X, Y)
    before = theirs.read_bytes()
    with pytest.raises(OutputError, match="must not be replaced: landscapex did not write it"):
        plane().to_h5(theirs)
    assert theirs.read_bytes() == before


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plane().to_h5("s.nc"), ArgumentError, r"one of \.h5, \.hdf5, got 's\.nc'"),
        (lambda: volume().to_h5("s.h5"), ArgumentError, "must have one or two axes .*, got 3"),
        (lambda: export.to_h5(3, "s.h5"), ArgumentTypeError, "`surface` must be a result"),
        (
            lambda: plane().to_h5("s.h5", directions=3),
            ArgumentTypeError,
            "`directions` must be a string, got int",
        ),
        (
            lambda: make({"loss": np.ones(9), "train_acc": np.ones(9)}, *PLACES[1]).to_h5("s.h5"),
            ArgumentError,
            "must not have columns with names of the format, got 'train_acc'",
        ),
        (
            lambda: make(-np.ones(9), *PLACES[1]).to_h5("s.h5"),
            ArgumentError,
            r"must not have train values that the format takes for missing points \(-1\)",
        ),
    ],
)
def test_surfaces_that_the_format_cannot_hold_are_refused(
    tmp_path, monkeypatch, call, error, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call()
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- files that are something else


def rewritten(name, values):
    def write(path):
        their_surface(path, X, Y)
        with h5py.File(path, "r+") as file:
            del file[name]
            if values is not None:
                file[name] = values

    return write


def linked(path):
    rewritten("train_loss", None)(path)
    their_surface(path.with_name("other.h5"), X, Y)
    with h5py.File(path, "r+") as file:
        file["train_loss"] = h5py.ExternalLink("other.h5", "train_loss")


def outside(path):
    rewritten("train_loss", None)(path)
    (path.parent / "raw").write_bytes(np.ones(15).tobytes())
    with h5py.File(path, "r+") as file:
        place = [(str(path.parent / "raw"), 0, 120)]
        file.create_dataset("train_loss", (3, 5), "f8", external=place)


def virtual(path):
    rewritten("train_loss", None)(path)
    their_surface(path.with_name("other.h5"), X, Y)
    layout = h5py.VirtualLayout((3, 5), "f8")
    layout[:] = h5py.VirtualSource("other.h5", "train_loss", (3, 5))
    with h5py.File(path, "r+") as file:
        file.create_virtual_dataset("train_loss", layout)


def odd(path):
    """Numbers whose exponents are counted from somewhere else."""
    rewritten("train_loss", None)(path)
    kind = h5py.h5t.IEEE_F64LE.copy()
    kind.set_ebias(1000)
    with h5py.File(path, "r+") as file:
        h5py.h5d.create(file.id, b"train_loss", kind, h5py.h5s.create_simple((3, 5)))


def huge(path):
    rewritten("train_loss", None)(path)
    with h5py.File(path, "r+") as file:
        file.create_dataset("train_loss", (1 << 20, 1 << 20), "f8", chunks=(1024, 1024))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no HDF5"), "file signature not found"),
        (lambda path: path.write_bytes(b""), "or damaged"),
        (lambda path: path.mkdir(), "must be a regular file, and exist"),
        (lambda path: None, "must be a regular file, and exist"),
        (rewritten("xcoordinates", None), "must hold the numbers 'xcoordinates'"),
        (rewritten("xcoordinates", X[None]), r"'xcoordinates' must have one dimension, got .*1, 3"),
        (rewritten("xcoordinates", np.full(3, np.nan)), "must be one or more finite numbers"),
        (rewritten("train_loss", None), "must hold the numbers 'train_loss'"),
        (rewritten("train_loss", b"text"), "must hold the numbers 'train_loss'"),
        (rewritten("train_acc", np.ones((4, 5))), r"'train_acc' must have shape \(3, 5\), got"),
        (linked, "must hold the numbers 'train_loss'"),
        (outside, "must hold the numbers 'train_loss'"),
        (virtual, "must hold the numbers 'train_loss'"),
        (odd, "'train_loss' holds numbers of no common type"),
        (huge, "'train_loss' is larger than the file"),
    ],
)
def test_what_is_no_surface_file_is_refused(tmp_path, spoil, message):
    path = tmp_path / "s.h5"
    spoil(path)
    with pytest.raises(CorruptFileError, match=message):
        export.read_h5(path)


@pytest.mark.parametrize("there", [False, True])
def test_a_missing_file_is_known_as_one(tmp_path, there):
    path = tmp_path / "s.h5"
    if there:
        path.mkdir()
    with pytest.raises(CorruptFileError, match="must be a regular file, and exist") as caught:
        export.read_h5(path)
    assert isinstance(caught.value, FileNotFoundError) is not there


def test_fault_07_a_damaged_number_of_ours_is_an_error(tmp_path):
    path = plane().to_h5(tmp_path / "s.h5")
    data = bytearray(path.read_bytes())
    place = data.index(np.array([0.0, 10.0, 20.0]).tobytes())
    data[place + 9] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match="filter returned failure during read"):
        export.read_h5(path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", r"crashes on it \(signal 11\)"),
        (
            "import signal, time; signal.setitimer(signal.ITIMER_REAL, 0.05); time.sleep(60)",
            "reading it takes for ever",
        ),
        ("raise SystemExit(1)", "no reason given"),
    ],
    ids=["crash", "hang", "silent"],
)
def test_fault_07_a_reader_that_dies_takes_nobody_with_it(tmp_path, monkeypatch, code, message):
    script = tmp_path / "reader.py"
    script.write_text(code)
    monkeypatch.setattr(export.hdf5.hdf5_reader, "__file__", str(script))
    with pytest.raises(CorruptFileError, match=message):
        export.read_h5(their_surface(tmp_path / "s.h5", X, Y))


def test_fault_07_a_damaged_name_of_ours_is_an_error(tmp_path):
    path = make({"loss": np.ones(9), "mine": np.ones(9)}, *PLACES[1]).to_h5(tmp_path / "s.h5")
    data = path.read_bytes()
    assert data.count(b"mine") == 2  # the name, and in what landscapex says of the file
    path.write_bytes(data.replace(b"mine", b"mint", 1))
    with pytest.raises(CorruptFileError, match="or damaged"):
        export.read_h5(path)


def test_fault_07_a_reader_that_hangs_is_ended_by_its_own_clock(tmp_path):
    """Also where whoever started it ignores alarms."""
    folder = Path(export.hdf5.hdf5_reader.__file__).parent
    code = (
        f"import sys; sys.path.insert(0, {str(folder)!r});"
        "import signal, time, hdf5_reader as reader;"
        "signal.signal(signal.SIGALRM, signal.SIG_IGN);"
        "reader.SECONDS = 0.1; reader.collect = lambda *_: time.sleep(20); reader.main()"
    )
    path = their_surface(tmp_path / "s.h5", X, Y)
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == -signal.SIGALRM


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::landscapex.errors.LandscapexWarning")
def test_damaged_files_give_results_or_errors_of_ours(tmp_path):
    rng = np.random.default_rng(0)
    samples = [plane().to_h5(tmp_path / "s.h5"), their_surface(tmp_path / "t.h5", X, Y)]
    path, refused = tmp_path / "damaged.h5", 0
    for trial in range(100):
        data = np.frombuffer(samples[trial % 2].read_bytes(), np.uint8).copy()
        used = np.flatnonzero(data)
        data[rng.choice(used, 3)] = rng.integers(0, 256, 3)
        path.write_bytes(data[: len(data) if trial % 5 else rng.integers(len(data))].tobytes())
        try:
            assert export.read_h5(path).ndim in (1, 2)
        except CorruptFileError:
            refused += 1
    assert refused > 20


# ---------------------------------------------------------------- directions


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2)
    )


def their_directions(path, tensors, other=None):
    """What h5_util.write_list writes."""
    with h5py.File(path, "w") as file:
        for name, each in (("xdirection", tensors), ("ydirection", other)):
            if each is not None:
                group = file.create_group(name)
                for k, tensor in enumerate(each):
                    group.create_dataset(str(k), data=tensor.numpy())
    return path


def test_directions_are_moved_as_their_code_moves_them(tmp_path):
    """set_weights: parameters in order, each plus a step of the array of its number."""
    model = network()
    drawn = lx.directions.random(model, n=2, seed=1)
    path = export.directions_to_h5(drawn, tmp_path / "Achsen ☃.h5", model)
    with h5py.File(path, "r") as file:
        assert list(file) == ["xdirection", "ydirection", "landscapex"]
        groups = [[file[n][str(k)][:] for k in range(len(file[n]))] for n in [*file][:2]]
    for number, arrays in enumerate(groups):
        parameters = [*model.named_parameters()]
        assert len(arrays) == len(parameters) == 6
        for array, (name, parameter) in zip(arrays, parameters, strict=True):
            assert array.shape == parameter.shape
            np.testing.assert_array_equal(array, drawn[number][name].numpy())


def test_their_directions_are_read_and_ours_come_back(tmp_path):
    model = network()
    drawn = lx.directions.random(model, n=2, seed=1)
    path = export.directions_to_h5(drawn, tmp_path / "axes.h5", model)
    back = export.directions_from_h5(path, model)
    assert torch.equal(back.vectors, drawn.vectors)
    assert [a.label for a in back.axes] == ["xdirection of axes.h5", "ydirection of axes.h5"]
    own = [torch.randn(p.shape) for p in model.parameters()]
    single = export.directions_from_h5(their_directions(tmp_path / "x.h5", own), model)
    assert len(single) == 1
    assert torch.equal(single.vectors[0], torch.cat([t.flatten() for t in own]))


def test_parameters_that_were_not_chosen_are_zeros_or_noted(tmp_path):
    """Their code zips parameters with arrays: one that is left out would move all the others."""
    model = network()
    model[0].weight.requires_grad_(False)
    drawn = lx.directions.random(model, n=1)
    path = export.directions_to_h5(drawn, tmp_path / "axes.h5", model)
    with h5py.File(path, "r") as file:
        assert len(file["xdirection"]) == 6
        assert not file["xdirection/0"][:].any()
    assert torch.equal(export.directions_from_h5(path, model).vectors, drawn.vectors)
    theirs = their_directions(tmp_path / "x.h5", [torch.ones(p.shape) for p in model.parameters()])
    with pytest.warns(LandscapexWarning, match=r"0\.weight do not move, but do in the file"):
        read = export.directions_from_h5(theirs, model)
    assert "0.weight do not move" in read.axes[0].note


def test_trap_16_directions_of_states_move_parameters_only(tmp_path):
    model = network()
    states = [torch.zeros(t.shape) for t in model.state_dict().values()]
    states[0] += 2
    path = their_directions(tmp_path / "states.h5", states)
    assert export.directions_from_h5(path, model)[0]["0.weight"].eq(2).all()
    states[[*model.state_dict()].index("1.running_var")] += 1
    with pytest.warns(LandscapexWarning, match=r"1\.running_var do not move"):
        export.directions_from_h5(their_directions(tmp_path / "s.h5", states), model)


def test_directions_of_another_model_are_refused(tmp_path):
    model = network()
    tensors = [torch.zeros(p.shape) for p in model.parameters()]
    with pytest.raises(ParameterMismatchError, match="per parameter of the model, got 5 for 6"):
        export.directions_from_h5(their_directions(tmp_path / "x.h5", tensors[:5]), model)
    tensors[2] = torch.zeros(7)
    with pytest.raises(ParameterMismatchError, match=r"got shape \(7,\) instead of \(3,\) for 1.w"):
        export.directions_from_h5(their_directions(tmp_path / "x.h5", tensors), model)
    with pytest.raises(CorruptFileError, match="must hold the group 'xdirection'"):
        export.directions_from_h5(their_surface(tmp_path / "s.h5", X, Y), model)
    path = their_directions(tmp_path / "x.h5", tensors)
    with h5py.File(path, "r+") as file:
        del file["xdirection/3"]
    with pytest.raises(CorruptFileError, match=r"'xdirection' must hold the arrays 0, 1, \.\.\."):
        export.directions_from_h5(path, model)


def test_directions_that_cannot_be_written_are_refused(tmp_path):
    model, target = network(), tmp_path / "axes.h5"
    with pytest.raises(ArgumentError, match="must be one or two for loss-landscape, got 3"):
        export.directions_to_h5(lx.directions.random(model, n=3), target, model)
    with pytest.raises(DirectionError, match="over the objective's 6 chosen parameters"):
        export.directions_to_h5(lx.directions.random(torch.nn.Linear(2, 2)), target, model)
    with pytest.raises(ArgumentTypeError, match="`directions` must be Directions, got list"):
        export.directions_to_h5([], target, model)
    folded = torch.nn.Linear(2, 2, dtype=torch.complex64)
    with pytest.raises(ArgumentError, match="`objective` must have real parameters"):
        export.directions_from_h5(target, folded)
    assert not list(tmp_path.iterdir())
