"""Training runs: checkpoints in the order of their steps, each read when it is needed.

A run is the folder of a `Recorder`, a folder of checkpoint files or of Hugging Face checkpoints, or
a list of states. Nothing here runs code that a file may hold; see `checkpoints`.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import numpy as np
from torch import Tensor, nn

from landscapex._warnings import warn
from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
)
from landscapex.model.parameters import unwrap
from landscapex.storage import checkpoints
from landscapex.storage.files import read_file, seal, unseal

INDEX = "index.jsonl"  # of a folder that a Recorder writes: one line per checkpoint

_MOST_STEPS = 2**63 - 1  # `Run.steps` are int64

State = Mapping[str, Tensor] | Tensor  # by name, or flat

# How training scripts write the step into the names of files; the first that fits counts.
_STEPS = (r"step[=_-]?(\d+)", r"checkpoint[=_-](\d+)", r"iter(?:ation)?[=_-]?(\d+)")
_EPOCH = r"epoch[=_-]?(\d+)"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A model at one step of its training.

    Attributes:
        step: Of the optimizer, or the number in a list.
        name: What messages call it.
        source: Where it is: a path, a state_dict, a module, or a flat vector.
        epoch: NaN where it is not known, like the other numbers.
        lr: The learning rate then; the largest, if there are several.
        loss: What the training loop measured then, on a batch for example.
        sha256: Of the file, where its writer noted it.
    """

    step: int
    name: str
    source: Path | State | nn.Module
    epoch: float = math.nan
    lr: float = math.nan
    loss: float = math.nan
    sha256: str = ""

    def read(self) -> State:
        """All tensors, checked against the checksum where there is one.

        Returns:
            A state_dict, or a flat vector if that is what was given.

        Raises:
            CorruptFileError: If the file is damaged or missing.
        """
        if self.sha256 and isinstance(self.source, Path):
            digest = hashlib.sha256(read_file(self.source)).hexdigest()
            if digest != self.sha256:
                raise CorruptFileError(
                    f"{self.source} is damaged: its contents do not match their SHA-256 in {INDEX}."
                )
        if isinstance(self.source, Path):
            return checkpoints.read(self.source)
        return self.open()

    def open(self) -> State:
        """The tensors, read one by one as they are asked for, after `read` has checked them."""
        if isinstance(self.source, Path):
            return checkpoints.open_lazily(self.source)
        if isinstance(self.source, nn.Module):
            state = unwrap(self.source).state_dict(keep_vars=True)
            return {n: t.detach() for n, t in state.items() if isinstance(t, Tensor)}
        return self.source


@dataclass(frozen=True, eq=False, repr=False)
class Run(Sequence[Checkpoint]):
    """Checkpoints with increasing steps.

    Attributes:
        checkpoints: In this order.
        folder: Where they are, if they are in one folder.
    """

    checkpoints: tuple[Checkpoint, ...]
    folder: Path | None = None

    def __len__(self) -> int:
        return len(self.checkpoints)

    @overload
    def __getitem__(self, index: int) -> Checkpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Run: ...
    def __getitem__(self, index: int | slice) -> Checkpoint | Run:
        """One checkpoint, or a run of some of them."""
        if isinstance(index, slice):
            return Run(self.checkpoints[index], self.folder)
        return self.checkpoints[index]

    def __repr__(self) -> str:
        where = f" in {self.folder}" if self.folder else ""
        steps = f"steps {self[0].step} to {self[-1].step}" if len(self) else "no steps"
        return f"Run({len(self)} checkpoints, {steps}{where})"

    @property
    def steps(self) -> np.ndarray:
        """The steps ``(T,)``, int64."""
        return np.array([c.step for c in self.checkpoints], dtype=np.int64)

    def states(self) -> Iterator[tuple[int, State]]:
        """Steps and states, read one after the other."""
        for checkpoint in self.checkpoints:
            yield checkpoint.step, checkpoint.read()


def open_run(source: Any) -> Run:
    """Find the checkpoints of a training run.

    Args:
        source: A folder of a `Recorder`; a folder with checkpoint files (``.safetensors``, or
            ``.pt``, ``.pth``, ``.bin``, ``.ckpt`` that hold tensors only) or with Hugging Face
            folders ``checkpoint-*``, ordered by the step, epoch or last number in their names; one
            such file or folder; a mapping {step: checkpoint}; or a list of checkpoints: paths,
            state_dicts, modules, flat vectors, or pairs (step, one of these). A list of paths with
            steps in their names is ordered by them, any other list is taken as it is.

    Returns:
        The run.

    Raises:
        ArgumentError: If there are no checkpoints, their order is not clear, or several share one
            memory.
        ArgumentTypeError: If ``source`` is none of the above.
        CorruptFileError: If the index of a recorded run is damaged.

    Example:
        >>> import torch
        >>> open_run([torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)])
        Run(2 checkpoints, steps 0 to 1)
    """
    if isinstance(source, Run):
        return source
    if isinstance(source, str | os.PathLike):
        return _from_path(Path(source))
    if isinstance(source, Mapping) and all(isinstance(step, int) for step in source):
        source = sorted(source.items())
    if isinstance(source, Tensor) and source.ndim == 2:
        source = list(source)
    if not isinstance(source, Sequence):
        raise ArgumentTypeError(
            "`checkpoints` must be a folder, a list of checkpoints, or a mapping "
            f"{{step: checkpoint}}, got {type(source).__name__}."
        )
    run = _from_list(list(source))
    if not len(run):
        raise ArgumentError("`checkpoints` must hold at least one checkpoint, got none.")
    _refuse_shared_memory(run)
    return run


def file_name(step: int) -> str:
    """The name of the file that a `Recorder` writes for a step."""
    return f"step-{step:09d}.safetensors"


def read_index(folder: Path) -> tuple[list[dict[str, Any]], int]:
    """The lines of the index of a recorded run.

    Args:
        folder: Of a `Recorder`.

    Returns:
        One record per checkpoint, and how many bytes of the file they take: what follows is a
        line that was not finished when its writer died.

    Raises:
        CorruptFileError: If a finished line is damaged.
    """
    path = folder / INDEX
    data = read_file(path).rstrip(b"\0")  # what a power cut leaves behind a file that grew
    whole = data[: data.rfind(b"\n") + 1]
    records: list[dict[str, Any]] = []
    seed = 0
    for k, line in enumerate(whole.splitlines()):
        crc = unseal(line, seed)
        if crc is None:
            raise CorruptFileError(f"{path} is damaged in line {k + 1}: its checksum is another.")
        try:
            records.append(_record(line, records[-1]["step"] if records else -1))
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise CorruptFileError(f"{path} is damaged in line {k + 1}: {error}.") from error
        seed = crc
    return records, len(whole)


def index_line(record: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> bytes:
    """The line of a checkpoint in the index.

    Args:
        record: What it says: "step" and "sha256", and numbers.
        before: What `read_index` made of the lines before it: a line is damage elsewhere.

    Returns:
        The line with its line break.
    """
    text = json.dumps(record, separators=(",", ":"), allow_nan=False)
    return seal(text.removeprefix("{"), int(before[-1]["crc32"], 16) if before else 0)


def _record(line: bytes, last: int) -> dict[str, Any]:
    """What a whole line of an index says; it must be of a step after the last."""
    record = json.loads(line)
    step, digest = record["step"], record["sha256"]
    if type(step) is not int or not last < step <= _MOST_STEPS:
        raise ValueError(f"no step above {last}")
    if re.fullmatch("[0-9a-f]{64}", digest) is None:
        raise ValueError("no SHA-256")
    return {**record, **{n: number_of(record.get(n)) for n in ("epoch", "lr", "loss")}}


def number_of(value: Any) -> float:
    """A number of a log: NaN if it is absent, the largest if there are several."""
    if isinstance(value, list):
        return max(map(number_of, value), default=math.nan)
    return math.nan if value is None else float(value)


def _from_path(path: Path) -> Run:
    if not path.exists():
        raise ArgumentError(f"`checkpoints` must exist, got {str(path)!r}.")
    path = path.absolute()  # it is read later too, from wherever the process is then
    if (path / INDEX).is_file():
        return _recorded(path)
    if path.is_dir():
        found = [p for p in path.iterdir() if _is_checkpoint(p)]
        numbered = [p for p in found if p.is_dir() or not checkpoints.is_model_folder(path)]
        if numbered or not checkpoints.is_model_folder(path):
            return replace(_ordered(numbered, path), folder=path)
    return Run((_of_path(path, 0),))


def _is_checkpoint(path: Path) -> bool:
    if path.is_dir():
        return checkpoints.is_model_folder(path)
    return path.suffix in checkpoints.SUFFIXES


def _recorded(folder: Path) -> Run:
    records, _ = read_index(folder)
    if not records:
        raise ArgumentError(f"`checkpoints` must hold at least one checkpoint, got {folder}.")
    found = [
        Checkpoint(
            r["step"], f"step {r['step']}", folder / file_name(r["step"]),
            r["epoch"], r["lr"], r["loss"], r["sha256"],
        )
        for r in records
    ]  # fmt: skip
    return Run(tuple(found), folder)


def _ordered(paths: Sequence[Path], folder: Path) -> Run:
    """The files of a folder by the numbers in their names."""
    steps = {p: step_in(p) for p in paths}
    left_out = sorted(p.name for p, step in steps.items() if step is None)
    known = [p for p, step in steps.items() if step is not None]
    if not paths:
        raise ArgumentError(f"`checkpoints` must hold checkpoints, got the folder {folder}.")
    if not known and len(paths) > 1:
        raise ArgumentError(
            f"`checkpoints` must have their steps in their names, got {', '.join(left_out[:3])} in "
            f"{folder}; pass a list in the order of training."
        )
    if not known:
        return Run((_of_path(paths[0], 0),))
    if left_out:
        warn(
            f"no step in the names of {', '.join(left_out[:10])} in {folder}: left out.",
        )
    return _with_log(_sorted([(step_in(p) or 0, p) for p in known]))


def _from_list(items: list[Any]) -> Run:
    pairs = [isinstance(i, tuple) and len(i) == 2 and isinstance(i[0], int) for i in items]
    if any(pairs):
        if not all(pairs):
            raise ArgumentTypeError(
                "`checkpoints` must hold pairs (step, checkpoint) throughout, or nowhere."
            )
        return _with_log(_sorted(items))
    paths = [Path(i) if isinstance(i, str | os.PathLike) else None for i in items]
    steps = [step_in(p) if p else None for p in paths]
    if items and all(s is not None for s in steps) and len(set(steps)) == len(steps):
        return _with_log(_sorted(list(zip(steps, paths, strict=True))))
    return _with_log(_sorted(list(enumerate(items))))


def _sorted(pairs: Iterable[tuple[Any, Any]]) -> Run:
    made = sorted((_made(step, item) for step, item in pairs), key=lambda c: c.step)
    for a, b in itertools.pairwise(made):
        if a.step == b.step:
            raise ArgumentError(
                f"`checkpoints` must have different steps, got {a.name} and {b.name} with "
                f"{a.step}; pass a list, or a mapping {{step: checkpoint}}."
            )
    return Run(tuple(made))


def _made(step: int, item: Any) -> Checkpoint:
    if isinstance(item, str | os.PathLike):
        return _of_path(Path(item).absolute(), step)
    flat = isinstance(item, Tensor) and item.ndim == 1
    named = isinstance(item, Mapping) and all(isinstance(n, str) for n in item)
    if not (flat or named or isinstance(item, nn.Module)):
        got = f"shape {tuple(item.shape)}" if isinstance(item, Tensor) else type(item).__name__
        raise ArgumentTypeError(
            "`checkpoints` must hold paths, state_dicts, modules or flat vectors, got "
            f"{got} for checkpoint {step}."
        )
    if isinstance(item, Mapping):  # extra state is the module's own business
        item = {n: t for n, t in item.items() if isinstance(t, Tensor)}
    return Checkpoint(step, f"checkpoint {step}", item)


def _of_path(path: Path, step: int) -> Checkpoint:
    epoch = re.search(_EPOCH, path.stem, re.IGNORECASE)
    return Checkpoint(step, path.name, path, float(epoch[1]) if epoch else math.nan)


def step_in(path: Path) -> int | None:
    """The step in the name of a checkpoint: after "step", "checkpoint", ..., or the last number.

    Args:
        path: Of a file or folder.

    Returns:
        The number, or None if there is none.

    Example:
        >>> step_in(Path("epoch=3-step=120.ckpt")), step_in(Path("model_20.pt"))
        (120, 20)
    """
    stem = path.stem if path.suffix in checkpoints.SUFFIXES else path.name
    stem = re.sub(r"-v\d+$", "", stem)  # Lightning's mark of a name that was taken
    for pattern in (*_STEPS, _EPOCH, r".*?(\d+)\D*$"):
        if found := re.search(pattern, stem, re.IGNORECASE):
            return int(found[1])
    return None


def _with_log(run: Run) -> Run:
    """Epochs, learning rates and losses that the Hugging Face Trainer kept beside the weights."""
    last = run[-1].source if len(run) else None
    entries: list[Any] = []
    if isinstance(last, Path) and last.is_dir():
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
            entries = json.loads((last / "trainer_state.json").read_bytes())["log_history"]
    if not isinstance(entries, list) or not entries:
        return run
    return replace(run, checkpoints=tuple(_noted(c, entries) for c in run.checkpoints))


def _noted(checkpoint: Checkpoint, entries: list[Any]) -> Checkpoint:
    """A checkpoint with what the log last said up to its step."""
    known: dict[str, Any] = {}
    for entry in entries:
        with contextlib.suppress(TypeError, ValueError, KeyError, OverflowError):
            if entry["step"] <= checkpoint.step:
                for ours, theirs in (("epoch", "epoch"), ("lr", "learning_rate"), ("loss", "loss")):
                    if theirs in entry:
                        known[ours] = float(entry[theirs])
    return replace(checkpoint, **known)


def _refuse_shared_memory(run: Run) -> None:
    """A list of ``model.state_dict()`` holds the same live tensors again and again."""
    seen: dict[tuple[int, ...], str] = {}
    for checkpoint in run.checkpoints:
        if isinstance(checkpoint.source, Path):
            continue
        state = checkpoint.open()
        tensors = [state] if isinstance(state, Tensor) else list(state.values())
        places = tuple(t.data_ptr() for t in tensors if t.numel())
        if places and places in seen:
            raise ArgumentError(
                f"`checkpoints` must be copies, but {seen[places]} and {checkpoint.name} are the "
                "same memory: append copy.deepcopy(model.state_dict()), or use a Recorder."
            )
        seen[places] = checkpoint.name
