"""What the fuzzer calls: readers and parsers, each with any bytes.

A target returns, whatever it is given; what it raises is a defect. Checksums would keep a fuzzer
out, so that targets called "sealed" put them right first.
"""

from __future__ import annotations

import contextlib
import json
import math
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from reliability.scratch import scratch
from storage import HEADER, VALUES

from landscapex._directions import Directions
from landscapex.errors import LandscapexError, LandscapexWarning
from landscapex.grids.options import parse_shard
from landscapex.grids.time_limit import parse_time_limit
from landscapex.storage import checkpoints, lock, store
from landscapex.storage.header import RunHeader, differences, recorded_differences
from landscapex.storage.journal_lines import chunk_line, first_line, parse
from landscapex.trajectories import runs

Target = Callable[[bytes], None]
_MOST = 100_000  # numbers of a grid: a larger one takes memory, and is no defect
_PATH = Path("fuzzed")
_MINE = replace(HEADER, provenance={"center": {"loss": 0.5}, "notes": []})


def journal(data: bytes) -> None:
    with _ours():
        contents = parse(data, _PATH)
        assert contents.values[~contents.done].tobytes() == _nan(contents.values[~contents.done])
        assert data.endswith(contents.tail)
        assert contents.end + len(contents.tail) == len(data)


def sealed_journal(data: bytes) -> None:
    first, *rest = data.split(b"\n")
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        axes = json.loads(b"{" + first)["header"]["axes"]
        if math.prod(len(axis["values"]) for axis in axes) > _MOST:
            return
    line = _seal(first, 0)
    seed = int(line[10:18], 16)
    journal(b"".join([line, *(_seal(text, seed) for text in rest)]))


def header(data: bytes) -> None:
    with _ours():
        made = RunHeader.from_json(data)
        again = RunHeader.from_json(made.to_json())
        assert again.to_json() == made.to_json()
        assert again.num_points == math.prod(made.shape)
        differences(made, _MINE)
        recorded_differences(_MINE, made)


def sealed_index(data: bytes) -> None:
    """The index of a recorded run."""
    lines, seed = [], 0
    for text in data.split(b"\n"):
        lines.append(_seal(text, seed))
        seed = int(lines[-1][10:18], 16)
    with scratch() as folder, _ours():
        (folder / runs.INDEX).write_bytes(b"".join(lines))
        run = runs.open_run(folder)
        assert (run.steps[1:] > run.steps[:-1]).all()
        assert all(isinstance(v, float) for c in run for v in (c.epoch, c.lr, c.loss))


def trainer_log(data: bytes) -> None:
    """What the Trainer of Hugging Face leaves beside a checkpoint: read if it can be read."""
    with scratch() as folder:
        checkpoint = folder / "checkpoint-7"
        checkpoint.mkdir()
        (checkpoint / "model.safetensors").write_bytes(b"")
        (checkpoint / "trainer_state.json").write_bytes(data)
        (found,) = runs.open_run(folder)
        assert found.step == 7
        assert all(isinstance(v, float) for v in (found.epoch, found.lr, found.loss))


def model_index(data: bytes) -> None:
    """The list of the files of a Hugging Face model, which must not lead out of its folder."""
    with scratch() as folder, _ours():
        path = folder / "pytorch_model.bin.index.json"
        path.write_bytes(data)
        for name in checkpoints._parts(path).values():
            assert (folder / name).parent == folder


def tensor_file(data: bytes) -> None:
    with scratch() as folder, _ours():
        path = folder / "d.safetensors"
        path.write_bytes(data)
        Directions.load(path)


def safetensors(data: bytes) -> None:
    with scratch() as folder, _ours():
        path = folder / "m.safetensors"
        path.write_bytes(data)
        for tensor in checkpoints.read(path).values():
            assert tensor.numel() * tensor.element_size() <= len(data)


def result(data: bytes) -> None:
    """A result up to the place where HDF5 would be asked; nothing gets there without its hash."""
    with scratch() as folder, _ours():
        path = folder / "s.nc"
        path.write_bytes(data)
        store.read_dataset(path)
        raise AssertionError("a damaged result was read")


def lock_file(data: bytes) -> None:
    holder = lock._parse_holder(data)
    if holder is not None:
        assert isinstance(holder["pid"], int)
        lock.process_start(holder["pid"] if holder["pid"] > 0 else 1)


def shard(data: bytes) -> None:
    with _ours():
        found = parse_shard(data.decode(errors="replace"))
        assert found is None or 0 <= found[0] < found[1]


def time_limit(data: bytes) -> None:
    with _ours():
        assert 0 < parse_time_limit(data.decode(errors="replace")) < math.inf


def step_in_name(data: bytes) -> None:
    found = runs.step_in(Path(data[:255].decode(errors="replace")))
    assert found is None or found >= 0


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _seeds() -> dict[str, list[bytes]]:
    """Valid input for every target."""
    lines = [chunk_line(k, VALUES[k : k + 4], 0) for k in (0, 4)]
    first = first_line(HEADER, (0, 2))
    record = {"step": 3, "loss": 0.5, "epoch": None, "lr": [0.1, 2], "sha256": "0" * 64}
    with scratch() as folder:
        path = folder / "d.safetensors"
        texts = {"axes": "[]", "layout": "[]", "kind": "landscapex directions 1"}
        state = {"w": torch.ones(2, 2), "z": torch.ones(1, dtype=torch.complex64)}
        tensors = checkpoints.to_safetensors({**state, "tied": state["w"]}, texts)
        surface = store.write_dataset(store.xr.Dataset({"x": 1.0}), path).read_bytes()
    entry = {"step": 5, "loss": 1.5, "epoch": 0.1, "learning_rate": 1e-3}
    return {
        "journal": [first + b"".join(lines)],
        "sealed journal": [b"\n".join([first[20:-1], *(line[20:-1] for line in lines)])],
        "header": [_MINE.to_json().encode()],
        "sealed index": [_json(record)[1:] + b"\n" + _json({**record, "step": 4})[1:]],
        "trainer log": [_json({"log_history": [entry, {**entry, "step": 6}]})],
        "model index": [_json({"weight_map": {"a.weight": "m-1.safetensors", "b": "m.bin"}})],
        "tensor file": [tensors],
        "safetensors": [tensors],
        "result": [surface[:700]],
        "lock file": [_json(lock._describe_me())],
        "shard": [b"0/4", b"auto", b"3/2"],
        "time limit": [b"90", b"2:30:00", b"1-00:00:00.5"],
        "step in name": [b"epoch=3-step=120.ckpt", b"checkpoint-20", b"model_7.pt"],
    }


SEEDS = _seeds
TARGETS: dict[str, Target] = {
    "journal": journal,
    "sealed journal": sealed_journal,
    "header": header,
    "sealed index": sealed_index,
    "trainer log": trainer_log,
    "model index": model_index,
    "tensor file": tensor_file,
    "safetensors": safetensors,
    "result": result,
    "lock file": lock_file,
    "shard": shard,
    "time limit": time_limit,
    "step in name": step_in_name,
}


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """Errors of landscapex are what may come, and its warnings."""
    with warnings.catch_warnings(), contextlib.suppress(LandscapexError):
        warnings.simplefilter("ignore", LandscapexWarning)
        yield


def _seal(members: bytes, seed: int) -> bytes:
    """What `storage.files.seal` does, with bytes that need not be text."""
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(members, seed), members)


def _nan(values) -> bytes:
    return (values * math.nan).tobytes()
