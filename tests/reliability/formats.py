"""The formats that landscapex reads, with valid files, and what must be true of damaged ones.

A check reads a file: True if what it says is what was written, False for anything else, and an
error of landscapex if the file is refused.
"""

from __future__ import annotations

import json
import socket
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import h5py
import numpy as np
import safetensors.torch
import torch
import xarray as xr
from export_cases import make
from recorder_cases import bits as tensor_bits
from recorder_cases import network
from storage import HEADER, VALUES, begun, bits, dead_pid, fill, make_header, make_values
from torch import nn
from trajectory_cases import curve, linear

import landscapex as lx
from landscapex import export
from landscapex._directions import Directions
from landscapex.errors import LandscapexError, LandscapexWarning
from landscapex.export import hdf5, hdf5_reader
from landscapex.grids.results import Surface
from landscapex.storage import checkpoints, lock, store
from landscapex.storage.journal import Journal
from landscapex.trajectories import runs
from landscapex.trajectories.recorder import Recorder
from landscapex.trajectories.trajectory import Trajectory

Check = Callable[[Path], bool]


@dataclass(frozen=True)
class Format:
    """Something that is read.

    Attributes:
        files: Valid contents: the first is damaged, with parts of the others.
        path: Where it has to be.
        check: Reads it.
        plain: Nothing in the format tells a wrong number from a right one.
        lines: It is made of lines.
        unit: What may be wrong.
        through: Reads it in yet another process, as landscapex does; `check` does not, for speed.
    """

    files: tuple[bytes, ...]
    path: Path
    check: Check
    plain: bool = False
    lines: bool = False
    unit: str = "numbers"
    through: Check | None = None


# --- results and journals


def result(folder: Path) -> Format:
    path = folder / "s.nc"
    data = []
    for seed in (0, 1):
        values = make_values(HEADER, seed)
        surface = Surface.from_run(HEADER, np.arange(15) != 7 + seed, values)
        data.append(surface.save(path).read_bytes())
        if not seed:
            wanted = surface.to_xarray()
    return Format(tuple(data), path, lambda p: lx.open(p).to_xarray().identical(wanted))


def curvature(folder: Path) -> Format:
    """A result with other columns, of the sizes that come from long runs: several chunks."""
    header = make_header(40, 30, columns=("loss", "smallest", "largest", "ratio"))
    path, data = folder / "m.nc", []
    for seed in (0, 1):
        surface = Surface.from_run(header, np.ones(1200, bool), make_values(header, seed))
        data.append(surface.save(path).read_bytes())
        if not seed:
            wanted = surface.to_xarray()
    return Format(tuple(data), path, lambda p: lx.open(p).to_xarray().identical(wanted))


def journal(folder: Path) -> Format:
    out = folder / "s.nc"
    path = begun(out, 15)
    files = [path.read_bytes()]
    path.unlink()
    other = make_header(3, 5, fingerprint={"parameters": "0"})
    files.append(begun(out, 15, other).read_bytes())

    def check(path: Path) -> bool:
        data = path.read_bytes()
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            surface = lx.open(path)
        if not _right(surface.evaluated.ravel(), _table(surface)):
            return False
        with warnings.catch_warnings(record=True) as opened:
            warnings.simplefilter("always")
            mine = Journal.open(out, HEADER)
        with mine:
            told = any(issubclass(w.category, LandscapexWarning) for w in opened)
            right = _right(mine.done, mine.values) and bool(mine.done.all() or told or _cut(data))
            fill(mine, VALUES)  # the run goes on
        header, done, values = store.read_journals(out)
        return right and header == HEADER and bool(done.all()) and bits(values) == bits(VALUES)

    def _cut(data: bytes) -> bool:
        """Whether nothing but whole lines is there: nobody can know that there were more."""
        return data.endswith(b"\n") and set(data.splitlines()) <= set(files[0].splitlines())

    return Format(tuple(files), path, check, lines=True)


def part(folder: Path) -> Format:
    """The journal of a part of a run, beside that of another part."""
    out = folder / "s.nc"
    files = []
    for shard, start in (((0, 2), 0), ((1, 2), 8)):
        with Journal.open(out, HEADER, shard=shard) as mine:
            mine.append(start, VALUES[start : start + 4])
            mine.append(start + 4, VALUES[start + 4 : min(start + 8, 15)])
        files.append(mine.path.read_bytes())

    def check(path: Path) -> bool:
        _, done, values = store.read_journals(out)
        return bool(done[8:].all()) and _right(done, values)

    return Format(tuple(files), folder / "s.nc.journal.shard0of2", check, lines=True)


def _right(done: np.ndarray, values: np.ndarray) -> bool:
    return bits(values[done]) == bits(VALUES[done]) and bool(np.isnan(values[~done]).all())


def _table(surface: Surface) -> np.ndarray:
    return np.stack([surface[column].ravel() for column in HEADER.columns], axis=1)


def held(folder: Path) -> Format:
    """The lock of a run that is going on somewhere else: it is respected, or it is no lock."""
    path = folder / "s.nc.journal.lock"
    holder = {"pid": dead_pid(), "host": socket.gethostname(), "start": "1", "since": "noon"}
    hosts = ("elsewhere", "there", socket.gethostname())
    texts = tuple(json.dumps({**holder, "host": host}).encode() for host in hosts)

    def check(path: Path) -> bool:
        # nobody is writing this one; a damaged one is else looked at for 2 s
        with patch.object(lock, "_PATIENCE", 0.0):
            lock.FileLock(path, folder / "s.nc").release()
        return False

    return Format(texts, path, check, plain=True, unit="holders or none")


# --- files of tensors


def directions(folder: Path) -> Format:
    path = folder / "d.safetensors"
    made = [lx.directions.random(linear(), 2, seed=seed) for seed in (0, 1)]
    files = tuple(d.save(path).read_bytes() for d in made)

    def check(path: Path) -> bool:
        found = Directions.load(path)
        same = found.axes == made[0].axes and found.layout == made[0].layout
        return same and torch.equal(found.vectors, made[0].vectors)

    return Format(files, path, check)


def path_of_training(folder: Path) -> Format:
    path = folder / "t.safetensors"
    made = [lx.trajectory(list(curve(6, seed)), linear(), n=2) for seed in (0, 1)]
    files = tuple(t.save(path).read_bytes() for t in made)

    def numbers(t: Trajectory) -> list[object]:
        arrays = [v for v in vars(t).values() if isinstance(v, np.ndarray)]
        center = t.center if isinstance(t.center, Mapping) else {"": t.center}
        return [*map(bits, arrays), tensor_bits(center), t.directions.vectors.tolist(), repr(t)]

    wanted = numbers(made[0])
    return Format(files, path, lambda p: numbers(Trajectory.load(p)) == wanted)


def record_run(folder: Path, steps: int, seed: int = 0) -> None:
    """A recorded run of steps 0, 1, ... with numbers in its index."""
    rng = np.random.default_rng(seed)
    with Recorder(folder, network(seed)) as record:
        for step in range(steps):
            loss, rate = rng.uniform(size=2)
            record(step, loss=loss, lr=rate, epoch=step / 10)


def index_of_run(folder: Path) -> Format:
    """Whole lines of a training, or all but the last ones of them."""
    record_run(folder / "other", 4, seed=1)
    record_run(folder / "run", 5)
    files = tuple((folder / name / runs.INDEX).read_bytes() for name in ("run", "other"))

    def numbers(run: runs.Run) -> list[tuple[object, ...]]:
        return [(c.step, repr(c.epoch), repr(c.lr), repr(c.loss), c.sha256) for c in run]

    wanted = numbers(runs.open_run(folder / "run"))

    def check(path: Path) -> bool:
        found = numbers(runs.open_run(path.parent))
        return found == wanted[: len(found)]

    return Format(files, folder / "run" / runs.INDEX, check, lines=True)


def recorded_step(folder: Path) -> Format:
    for seed, name in enumerate(("run", "other")):
        record_run(folder / name, 2, seed)
    path, other = (folder / name / runs.file_name(1) for name in ("run", "other"))
    files = path.read_bytes(), other.read_bytes()
    run = runs.open_run(folder / "run")
    wanted = tensor_bits(run[1].read())
    check = lambda path: tensor_bits(run[1].read()) == wanted  # noqa: E731
    return Format(files, path, check)


# --- checkpoints: formats of others


def _checkpoint(folder: Path, name: str, write: Callable[[dict, Path], object], plain: bool):
    path = folder / name
    files = []
    for seed in (0, 1):
        write(dict(network(seed).state_dict()), path)
        files.append(path.read_bytes())
    return Format(tuple(files), path, _into_model(), plain)


def _into_model(where: Callable[[Path], Path] = lambda path: path) -> Check:
    """Whether a model gets the right weights; one whose file is refused must stay as it is."""
    wanted = tensor_bits(network(0).state_dict())
    model, before = network(5), tensor_bits(network(5).state_dict())
    state = {n: t.clone() for n, t in model.state_dict().items()}

    def check(path: Path) -> bool:
        model.load_state_dict(state)
        try:
            checkpoints.load(model, where(path))
        except LandscapexError:
            if tensor_bits(model.state_dict()) != before:
                raise AssertionError("a file was refused, but the model changed") from None
            raise
        found = tensor_bits(model.state_dict())
        assert {n: t[:2] for n, t in found.items()} == {n: t[:2] for n, t in wanted.items()}
        return found == wanted

    return check


def checkpoint_safetensors(folder: Path) -> Format:
    return _checkpoint(folder, "m.safetensors", safetensors.torch.save_file, plain=True)


def checkpoint_torch(folder: Path) -> Format:
    return _checkpoint(folder, "m.pt", torch.save, plain=False)


def checkpoint_old_torch(folder: Path) -> Format:
    def write(state: dict, path: Path) -> None:
        torch.save(state, path, _use_new_zipfile_serialization=False)

    return _checkpoint(folder, "m.pt", write, plain=True)


def parts_of_model(folder: Path) -> Format:
    """The list of the files of a model of Hugging Face."""
    state = network(0).state_dict()
    names = sorted(state)
    lists = []
    for cut in (3, 4):
        where = {n: f"model-{k >= cut}.safetensors" for k, n in enumerate(names)}
        lists.append(json.dumps({"metadata": {"total_size": 9}, "weight_map": where}).encode())
    for name in sorted(set(where.values())):
        held = {n: state[n] for n in names if where[n] == name}
        safetensors.torch.save_file(held, folder / name)
    path = folder / "model.safetensors.index.json"
    return Format((lists[1], lists[0]), path, _into_model(lambda p: p.parent))


def log_of_trainer(folder: Path) -> Format:
    """What the Trainer of Hugging Face says of its steps: left out if it cannot be read."""
    texts = [
        json.dumps({"log_history": [{"step": k, "epoch": k / 9, "loss": 1 / k, "learning_rate": r}
                                    for k in range(1, 12, 5)]}).encode()
        for r in (0.1, 0.25)
    ]  # fmt: skip
    inner = folder / "checkpoint-11"
    inner.mkdir()
    safetensors.torch.save_file(dict(network(0).state_dict()), inner / "model.safetensors")

    def check(path: Path) -> bool:
        (found,) = runs.open_run(folder)
        assert all(isinstance(v, float) for v in (found.epoch, found.lr, found.loss))
        assert found.step == 11
        return (found.epoch, found.lr, found.loss) == (11 / 9, 0.1, 1 / 11)

    return Format(tuple(texts), inner / "trainer_state.json", check, plain=True)


# --- HDF5 files that are shared with loss-landscape


def _contents_here(source: Path) -> hdf5.Contents:
    """What `hdf5._contents` asks another process for, in this one, which may die of it."""
    budget = hdf5_reader._DEFLATED * source.stat().st_size
    ours = source.read_bytes().startswith(hdf5.MARK)
    with h5py.File(source, "r", locking=False) as file:
        return hdf5.Contents(*hdf5_reader.collect(file, budget), ours)


def _guarded(files: tuple[bytes, ...], path: Path, check: Check, plain: bool) -> Format:
    """A format whose files landscapex reads in a process of its own."""

    def here(path: Path) -> bool:
        there, hdf5._contents = hdf5._contents, _contents_here
        try:
            return check(path)
        finally:
            hdf5._contents = there

    return Format(files, path, here, plain, through=check)


def _surface_check(wanted: Surface) -> Check:
    def numbers(surface: Surface) -> xr.Dataset:
        return surface.to_xarray().drop_attrs()

    right = numbers(wanted)
    return lambda path: numbers(export.read_h5(path)).identical(right)


def _plane(seed: int) -> Surface:
    values = np.random.default_rng(seed).uniform(0.1, 9, (3, 35))
    columns = {"loss": values[0], "accuracy": values[1], "test_loss": values[2]}
    x, y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 7)
    return make(columns, x, y, done=np.arange(35) != 9)


def our_surface(folder: Path) -> Format:
    path = folder / "s.h5"
    files = tuple(_plane(seed).to_h5(path).read_bytes() for seed in (1, 0))
    return _guarded(files[::-1], path, _surface_check(export.read_h5(path)), plain=False)


def their_surface(folder: Path) -> Format:
    """As plot_surface.py writes it; it has no checksums."""
    path, files = folder / "s.h5", []
    for seed in (1, 0):
        rng = np.random.default_rng(seed)
        with h5py.File(path, "w") as file:
            file["dir_file"] = "model_300.t7_weights.h5"
            file["xcoordinates"], file["ycoordinates"] = np.arange(3.0), np.arange(5.0)
            for name in ("train_loss", "train_acc"):
                file[name] = rng.uniform(0.1, 9, (3, 5))
        files.append(path.read_bytes())
    check = _surface_check(export.read_h5(path))
    return _guarded((files[1], files[0]), path, check, plain=True)


def _directions_check(model: nn.Module, wanted: Directions) -> Check:
    def check(path: Path) -> bool:
        found = export.directions_from_h5(path, model)
        assert found.layout == wanted.layout
        same = len(found) == len(wanted)
        return same and torch.equal(found.vectors, wanted.vectors)

    return check


def our_directions(folder: Path) -> Format:
    path, model = folder / "d.h5", network()
    made = [lx.directions.random(model, 2, seed=seed) for seed in (1, 0)]
    files = [export.directions_to_h5(d, path, model).read_bytes() for d in made]
    check = _directions_check(model, made[1])
    return _guarded((files[1], files[0]), path, check, plain=False)


def their_directions(folder: Path) -> Format:
    """As h5_util.write_list writes them."""
    path, model, files = folder / "d.h5", network(), []
    for seed in (1, 0):
        generator = torch.Generator().manual_seed(seed)
        with h5py.File(path, "w") as file:
            for name in ("xdirection", "ydirection"):
                group = file.create_group(name)
                for k, p in enumerate(model.parameters()):
                    group.create_dataset(str(k), data=torch.randn(p.shape, generator=generator))
        files.append(path.read_bytes())
    check = _directions_check(model, export.directions_from_h5(path, model))
    return _guarded((files[1], files[0]), path, check, plain=True)


FORMATS: dict[str, Callable[[Path], Format]] = {
    "results (.nc)": result,
    "curvature maps (.nc)": curvature,
    "journals": journal,
    "journals of parts": part,
    "locks": held,
    "directions (.safetensors)": directions,
    "trajectories (.safetensors)": path_of_training,
    "indices of recorded runs": index_of_run,
    "checkpoints of recorded runs": recorded_step,
    "checkpoints (.safetensors)": checkpoint_safetensors,
    "checkpoints (.pt)": checkpoint_torch,
    "checkpoints (.pt, torch before 1.6)": checkpoint_old_torch,
    "indices of Hugging Face models": parts_of_model,
    "logs of the Hugging Face Trainer": log_of_trainer,
    "loss-landscape surfaces (.h5), ours": our_surface,
    "loss-landscape surfaces (.h5), theirs": their_surface,
    "loss-landscape directions (.h5), ours": our_directions,
    "loss-landscape directions (.h5), theirs": their_directions,
}
