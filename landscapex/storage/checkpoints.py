"""Checkpoints: the state_dict of a model in a file, read without running anything that is in it.

Safetensors files, ``torch.save`` files and folders of Hugging Face models are read. A file that
would need Python code of its own to be executed is refused, and there is no switch to read it all
the same.
"""

from __future__ import annotations

import contextlib
import json
import pickletools
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from landscapex.errors import ArgumentError, CorruptFileError, ParameterMismatchError

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
# Where training scripts put the state_dict when they save more than that.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
# What Hugging Face calls the weights in the folder of a model: whole, or a list of their parts.
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# Keys of the header of a safetensors file that hold what the format itself cannot.
_TIED, _COMPLEX = "landscapex.tied", "landscapex.complex"
HEADER = ("format", _TIED, _COMPLEX)  # what `to_safetensors` adds to a header
_LISTED = 10
_PICKLES = 4  # one after the other in old files of torch.save: the last is the content
_LONGEST = 1000  # characters of the name of a class


def read(path: str | Path) -> dict[str, Tensor]:
    """Read a state_dict.

    Args:
        path: A ``.safetensors`` file; or a ``.pt``, ``.pth``, ``.bin`` or ``.ckpt`` file of
            ``torch.save`` that holds a state_dict, alone or under ``"state_dict"``,
            ``"model_state_dict"`` or ``"model"``; or the folder of a Hugging Face model.

    Returns:
        Names and tensors, on the CPU.

    Raises:
        ArgumentError: If there is no such file, or its suffix is none of those above.
        CorruptFileError: If the file is damaged, holds no state_dict, or asks for code to be run.
            Other numbers are noticed where the file has checksums, as those of ``torch.save`` have
            since torch 1.6; safetensors files have none.
    """
    return dict(_open(Path(path), mapped=False))


def open_lazily(path: str | Path) -> Mapping[str, Tensor]:
    """Open a state_dict whose tensors are read one by one, when they are asked for.

    For files that `read` has read before: the checksums of ``torch.save`` are not looked at again.
    The files must stay as they are while the tensors are in use.

    Args:
        path: As in `read`.

    Returns:
        Names and tensors, on the CPU. They stay on the disk until then; files of very old versions
        of torch are read at once.

    Raises:
        ArgumentError: As in `read`.
        CorruptFileError: As in `read`, here or when a tensor is asked for.
    """
    return _open(Path(path), mapped=True)


def _open(path: Path, *, mapped: bool) -> Mapping[str, Tensor]:
    if path.is_dir():
        return _open_folder(path, mapped)
    if not path.is_file():
        raise ArgumentError(f"`checkpoint` must be a file, got {str(path)!r}.")
    if path.suffix == ".safetensors":
        return _Safetensors(path)
    if path.suffix in SUFFIXES:
        return _open_torch(path, mapped)
    raise ArgumentError(
        f"`checkpoint` must end in one of {', '.join(SUFFIXES)}, got {str(path)!r}."
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file whatever it is called; see `read`."""
    return dict(_Safetensors(path))


def is_model_folder(path: Path) -> bool:
    """Whether a folder holds the weights of a Hugging Face model.

    Args:
        path: Any path.

    Returns:
        True if `read` finds a file with the weights in it.
    """
    return any((path / name).is_file() for name in _WHOLE + _PARTS)


def load(model: nn.Module, path: str | Path) -> None:
    """Read a state_dict and copy it into a model.

    Args:
        model: Written to only when every name, shape and dtype fits.
        path: As in `read`. A prefix that all names of the model have in the file (``module.`` of
            DataParallel, ``_orig_mod.`` of torch.compile, the attribute of a Lightning module) is
            dropped, and with it whatever does not have it.

    Raises:
        ParameterMismatchError: If names are missing or unexpected, or shapes or dtypes differ.
            The message lists up to ten of them.

    Example:
        >>> import safetensors.torch, tempfile, torch
        >>> model = torch.nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = folder + "/model.safetensors"
        ...     safetensors.torch.save_file({"weight": torch.ones(1, 3)}, file)
        ...     load(model, file)
        Traceback (most recent call last):
        landscapex.errors.ParameterMismatchError: The checkpoint does not fit the model:
          weight: shape (1, 2) in the model, (1, 3) in the checkpoint
          bias: missing in the checkpoint
    """
    expected = model.state_dict(keep_vars=True)
    stored = read(path)
    prefix = common_prefix(stored, expected)
    state = {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}
    problems = _mismatches(expected, state)
    if problems:
        listed = problems[:_LISTED]
        if len(problems) > _LISTED:
            listed.append(f"and {len(problems) - _LISTED} more")
        raise ParameterMismatchError(
            "The checkpoint does not fit the model:\n  " + "\n  ".join(listed)
        )
    model.load_state_dict(state, strict=False)


def common_prefix(stored: Collection[str], expected: Collection[str]) -> str:
    """What stands before the names of a model in a checkpoint of something that contains it.

    Args:
        stored: Names in the checkpoint.
        expected: Names in the model.

    Returns:
        The prefix under which more names of the model are found than under any other; nothing if
        there are as many without one, or if two prefixes are equally good.

    Example:
        >>> common_prefix(["net.weight", "net.bias", "metric.total"], ["weight", "bias"])
        'net.'
    """
    for anchor in expected:
        found = {n.removesuffix(anchor) for n in stored if n == anchor or n.endswith(f".{anchor}")}
        if found:
            names = set(stored)
            counts = {p: sum(p + name in names for name in expected) for p in found | {""}}
            best = max(counts.values())
            winners = [p for p, count in counts.items() if count == best]
            return winners[0] if len(winners) == 1 else ""
    return ""


def to_safetensors(state: Mapping[str, Tensor], header: Mapping[str, str]) -> bytes:
    """The contents of a safetensors file with every tensor once, under the first of its names.

    Args:
        state: Names and tensors on any device; names of one tensor are tied. Complex tensors are
            stored as pairs (real, imaginary).
        header: Goes into the file's own header.

    Returns:
        The bytes; `read` gives back all names, with the same bits.
    """
    from safetensors.torch import save

    first: dict[object, str] = {}
    tied: dict[str, str] = {}
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        t = tensor.detach()
        place = (t.data_ptr(), t.dtype, t.shape, t.stride(), t.is_conj(), str(t.device))
        # tensors without entries are nowhere, and so no two of them are at the same place
        if first.setdefault(place if t.numel() else name, name) != name:
            tied[name] = first[place]
            continue
        plain = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        kept[name] = plain.resolve_neg().to("cpu", copy=True).contiguous()
    metadata = {"format": "pt", **header}  # without "pt", Hugging Face refuses the file
    if tied:
        metadata[_TIED] = json.dumps(tied)
    if split := [name for name in kept if state[name].is_complex()]:
        metadata[_COMPLEX] = json.dumps(split)
    return save(kept, metadata=metadata)


class _Safetensors(Mapping[str, Tensor]):
    """The tensors of one safetensors file, tied names included."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self._path = path
        with _damage_named(path):
            self._file = safe_open(path, framework="pt")
            header = self._file.metadata() or {}
            own = list(self._file.keys())
            self._where = {name: name for name in own}
            for alias, name in json.loads(header.get(_TIED, "{}")).items():
                self._where[alias] = {n: n for n in own}[name]
            self._complex = set(json.loads(header.get(_COMPLEX, "[]")))

    def __getitem__(self, name: str) -> Tensor:
        stored = self._where[name]
        with _damage_named(self._path):
            tensor: Tensor = self._file.get_tensor(stored)
            return torch.view_as_complex(tensor) if stored in self._complex else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


class _Joined(Mapping[str, Tensor]):
    """The tensors of several files, each opened when one of its tensors is asked for."""

    def __init__(self, folder: Path, where: Mapping[str, str], mapped: bool) -> None:
        self._folder, self._where, self._mapped = folder, where, mapped
        self._open: tuple[str, Mapping[str, Tensor]] = ("", {})

    def __getitem__(self, name: str) -> Tensor:
        file = self._where[name]
        if self._open[0] != file:  # one at a time: parts are made as large as memory allows
            self._open = (file, _open(self._folder / file, mapped=self._mapped))
        if name not in self._open[1]:
            raise CorruptFileError(f"{self._folder / file} must hold {name}, as the index says.")
        return self._open[1][name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._where, key=lambda name: (self._where[name], name)))

    def __len__(self) -> int:
        return len(self._where)


def _open_folder(folder: Path, mapped: bool) -> Mapping[str, Tensor]:
    for name in _WHOLE:
        if (folder / name).is_file():
            return _open(folder / name, mapped=mapped)
    for name in _PARTS:
        if (folder / name).is_file():
            return _Joined(folder, _parts(folder / name), mapped)
    raise ArgumentError(
        "`checkpoint` must be a file, or a folder that holds one of "
        f"{', '.join(_WHOLE + _PARTS)}, got {str(folder)!r}."
    )


def _parts(index: Path) -> dict[str, str]:
    """Which file holds which tensor: names of files beside the index, and nowhere else."""
    try:
        parts = json.loads(index.read_bytes())["weight_map"]
        good = bool(parts) and all(
            isinstance(v, str) and Path(v).name == v and Path(v).suffix in SUFFIXES
            for v in parts.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFileError(f"{index} is not a readable index of weights: {error}.") from error
    if not good:
        raise CorruptFileError(f"{index} must name files beside it under weight_map.")
    return dict(parts)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Whatever the reader raises on a damaged file leaves as `CorruptFileError`."""
    try:
        yield
    except Exception as error:
        raise CorruptFileError(f"{path} is not a readable safetensors file: {error}.") from error


def _open_torch(path: Path, mapped: bool) -> Mapping[str, Tensor]:
    try:
        content = _load_torch(path, mapped)
    except Exception as error:  # the reader raises nearly anything on a damaged file
        raise CorruptFileError(_refusal(path, error)) from error
    for key in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content or not _all_tensors(content):
        raise CorruptFileError(
            f"{path} must hold a state_dict (names and tensors), got {_describe(content)}."
        )
    return dict(content)


def _load_torch(path: Path, mapped: bool) -> Any:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"  # else of torch before 1.6, which cannot be mapped
        if not zipped:
            file.seek(0)
            _check_names(file)
    if zipped and not mapped:
        _check_archive(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and zipped)


def _check_archive(path: Path) -> None:
    """Refuse a file of ``torch.save`` whose parts do not have their CRC-32: torch does not look."""
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if all(part.header_offset for part in parts):  # none at the beginning of the file
            raise ValueError("it holds two archives")  # and torch would read the other one
        # they are all 0 after torch.serialization.set_crc32_options(False)
        if any(part.CRC for part in parts) and (bad := archive.testzip()):
            raise ValueError(f"{bad} is damaged")
        for part in parts:
            if part.filename.endswith("/data.pkl"):
                with archive.open(part) as file:
                    _check_names(file)


def _check_names(file: IO[bytes]) -> None:
    """Refuse pickles with names so long that torch would take for ever to refuse them."""
    with contextlib.suppress(ValueError, IndexError, OverflowError, zipfile.BadZipFile):
        for _ in range(_PICKLES):
            for code, name, _ in pickletools.genops(file):
                if code.name == "GLOBAL" and len(str(name)) > _LONGEST:
                    raise _LongNameError(f"a name of {len(str(name))} characters")


class _LongNameError(Exception):
    """A name that nobody has given."""


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    # what refusals of torch hold; the second is said of archives of TorchScript
    if "Weights only" not in text and "weights_only" not in text:
        return f"{path} is not a readable torch.save file: {type(error).__name__}."
    asked = re.search(r"GLOBAL (\S+)", text)
    what = f" ({asked[1]})" if asked else ""
    return (
        f"{path} was refused: reading it would run code that is stored in it{what}. Save the "
        "weights alone: torch.save(model.state_dict(), path)."
    )


def _all_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a mapping with keys {list(map(str, content))[:_LISTED]}"
    return f"a {type(content).__name__}"


def _mismatches(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """One line for every name that does not fit, in the order of the model."""
    # Safetensors keeps one name of tied parameters: what arrives under another name is there.
    arrived = {id(expected[name]) for name in state if name in expected}
    problems = []
    for name, tensor in expected.items():
        if not isinstance(tensor, Tensor):
            continue  # extra state: the module's own business
        if name in state:
            problems += _difference(name, tensor, state[name])
        elif id(tensor) not in arrived and not name.endswith("num_batches_tracked"):
            problems.append(f"{name}: missing in the checkpoint")
    problems += [f"{name}: not in the model" for name in state if name not in expected]
    return problems


def _difference(name: str, model: Tensor, file: Tensor) -> list[str]:
    if model.shape != file.shape:
        shapes = f"shape {tuple(model.shape)} in the model, {tuple(file.shape)} in the checkpoint"
        return [f"{name}: {shapes}"]
    if torch.promote_types(model.dtype, file.dtype) != model.dtype:  # copying would lose digits
        return [f"{name}: {model.dtype} in the model, {file.dtype} in the checkpoint"]
    return []
