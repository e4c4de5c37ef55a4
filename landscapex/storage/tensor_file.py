"""Named tensors and texts in one safetensors file that knows whether it is whole."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from landscapex.errors import CorruptFileError
from landscapex.storage import checkpoints
from landscapex.storage.files import check_path, fail, replace_file

T = TypeVar("T")


def save(
    path: str | os.PathLike[str],
    kind: str,
    tensors: Mapping[str, Tensor],
    texts: Mapping[str, str],
) -> Path:
    """Write a file, at once when it is complete.

    Args:
        path: The file; an existing one is replaced.
        kind: What it is, for `load`.
        tensors: By name, on any device.
        texts: By name.

    Returns:
        The absolute path.

    Raises:
        OutputError: If it cannot be written.
    """
    target = check_path(path)
    texts = {**texts, "kind": kind}
    header = {**texts, "sha256": _digest(tensors, texts)}
    replace_file(target, checkpoints.to_safetensors(tensors, header))
    return target


def load(
    path: str | os.PathLike[str],
    kind: str,
    make: Callable[[Mapping[str, Tensor], Mapping[str, str]], T],
) -> T:
    """Read what `save` wrote.

    Args:
        path: The file.
        kind: What it must be.
        make: From tensors and texts to the result; whatever it raises means a damaged file.

    Returns:
        What ``make`` returned.

    Raises:
        CorruptFileError: If the file is damaged, missing, or of another kind.
    """
    file = check_path(path)
    if not file.is_file():
        fail(f"{file} must exist, got no such file.", errno.ENOENT, CorruptFileError)
    try:
        with safe_open(file, framework="pt") as opened:
            header = dict(opened.metadata() or {})
    except Exception as error:  # the reader's own errors are many
        raise CorruptFileError(f"{file} is not a readable safetensors file: {error}.") from error
    if header.get("kind") != kind:
        raise CorruptFileError(f"{file} must be a file of {kind}, got {header.get('kind')!r}.")
    tensors = checkpoints.read_safetensors(file)
    texts = {n: t for n, t in header.items() if n not in checkpoints.HEADER and n != "sha256"}
    # "format" is the one text that the digest leaves out
    if header.get("format") != "pt" or _digest(tensors, texts) != header.get("sha256"):
        raise CorruptFileError(f"{file} is damaged: its contents do not match their SHA-256.")
    try:
        return make(tensors, texts)
    except Exception as error:
        raise CorruptFileError(f"{file} is damaged: {error}.") from error


def _digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(repr(sorted(texts.items())).encode())
    for name in sorted(tensors):
        t = tensors[name].detach().resolve_conj().resolve_neg().cpu().contiguous()
        digest.update(repr((name, str(t.dtype), tuple(t.shape))).encode())
        if t.numel():
            digest.update(t.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
