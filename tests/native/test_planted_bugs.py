"""Bugs planted into the kernels, each caught by a check; the kernels as they are, by none.

A check that has never failed proves nothing. Kinds: missing barrier, divergent barrier, wrong warp
mask, out of bounds, uninitialised shared read, race, misaligned access, 32-bit overflow, wrong
result; lost atomics are in planted_bugs.cu, since no kernel of ours uses an atomic.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
from native.harness import COMPILER, HERE, KERNELS, ORDERS, SANITIZERS, Harness, planted

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


@dataclass(frozen=True)
class Bug:
    """A change of one line, and the build whose run must fail."""

    name: str
    file: str
    old: str
    new: str
    kind: str
    order: str = "forward"
    wide: bool = False
    says: str = ""


BUGS = [
    Bug(
        "missing barrier before the read",
        "filter_normalize.cu",
        "= mine;\n  __syncthreads();",
        "= mine;",
        "plain",
        "reverse",
    ),
    Bug(
        "missing barrier after the read",
        "filter_normalize.cu",
        "  __syncthreads();  // the next call overwrites them\n",
        "",
        "plain",
        "warps",
    ),
    Bug(
        "missing barrier, as a race",
        "filter_normalize.cu",
        "  __syncthreads();  // the next call overwrites them\n",
        "",
        "thread",
        says="data race",
    ),
    Bug(
        "divergent barrier",
        "filter_normalize.cu",
        "= mine;\n  __syncthreads();",
        "= mine;\n  if (threadIdx.x < 64) __syncthreads();",
        "plain",
        says="different barriers",
    ),
    Bug(
        "wrong warp mask",
        "filter_normalize.cu",
        "kAllLanes = 0xffffffffu",
        "kAllLanes = 0x0000ffffu",
        "plain",
        says="mask",
    ),
    Bug(
        "half of the lanes forgotten",
        "filter_normalize.cu",
        "half = kLanes / 2; half > 0",
        "half = kLanes / 4; half > 0",
        "plain",
    ),
    Bug(
        "uninitialised shared read",
        "filter_normalize.cu",
        "if (threadIdx.x % 32 == 0) warps",
        "if (threadIdx.x % 32 == 0 && threadIdx.x / 32 + 1 < count) warps",
        "plain",
    ),
    Bug(
        "past the end of a shared array",
        "filter_normalize.cu",
        "warps[threadIdx.x / 32] = mine",
        "warps[threadIdx.x / 32 + 1] = mine",
        "memory",
        says="global-buffer-overflow|insufficient space",
    ),
    Bug(
        "past the end of a run",
        "filter_normalize.cu",
        "return full < entries ? full : entries;",
        "return full < entries ? entries : full;",
        "memory",
        says="heap-buffer-overflow",
    ),
    Bug(
        "every thread writes the norm",
        "filter_normalize.cu",
        "if (threadIdx.x == 0) {",
        "{",
        "thread",
        says="data race",
    ),
    Bug(
        "every block writes the norm of the centre",
        "filter_normalize.cu",
        "if (k == 0) args.norms",
        "args.norms",
        "thread",
        says="data race",
    ),
    Bug(
        "32-bit row offset on CUDA",
        "filter_normalize.cu",
        "k * args.num_params;",
        "static_cast<int>(k) * static_cast<int>(args.num_params);",
        "undefined",
        wide=True,
        says="signed integer overflow",
    ),
    Bug(
        "32-bit row offset on the CPU",
        "filter_normalize.cpp",
        "? static_cast<const T*>(args.directions) + k * args.num_params",
        "? static_cast<const T*>(args.directions) + int(k) * int(args.num_params)",
        "undefined",
        wide=True,
        says="signed integer overflow",
    ),
    Bug(
        "32-bit address of an entry",
        "filter_normalize.h",
        "run.offset + e / run.inner * run.stride",
        "int(run.offset) + int(e / run.inner) * int(run.stride)",
        "plain",
        wide=True,
    ),
    Bug(
        "vectors past the end of a segment",
        "filter_normalize.cpp",
        "i + kLanes <= n; i += kLanes",
        "i < n; i += kLanes",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "gathered past the end of a buffer",
        "filter_normalize.cpp",
        "return {entry_of(run, e), rest < left ? rest : left};",
        "return {entry_of(run, e), rest};",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "entries past the last one",
        "perturb.cu",
        "j < kPerThread && i < last;",
        "j < kPerThread;",
        "memory",
        says="buffer-overflow|out of bounds",
    ),
    Bug(
        "wrong tensor at its first entry",
        "perturb.cu",
        "while (i >= args.start[t + 1]) ++t;",
        "while (i > args.start[t + 1]) ++t;",
        "plain",
    ),
    Bug(
        "misaligned load",
        "perturb.cu",
        "double sum = center[i];",
        "double sum = (args.num_params > i + 1) ? double(float(*reinterpret_cast<const "
        "double*>(center + i))) : 0.0;",
        "undefined",
        says="misaligned address",
    ),
    Bug(
        "32-bit index on CUDA",
        "perturb.cu",
        "directions[k * args.num_params + i]",
        "directions[int(k) * int(args.num_params) + i]",
        "undefined",
        wide=True,
        says="signed integer overflow",
    ),
    Bug(
        "32-bit index on the CPU",
        "perturb.cpp",
        "d[k * stride + i]",
        "d[int(k) * int(stride) + i]",
        "undefined",
        wide=True,
        says="signed integer overflow",
    ),
    Bug(
        "a thread writes its neighbour's entries",
        "perturb.cpp",
        "const int64_t n = (end < last ? end : last) - flat,",
        "const int64_t n = end - flat,",
        "thread",
        says="data race",
    ),
    Bug(
        "second number of a pair past the end",
        "gaussian.cu",
        "if (index + 1 - args.offset < num) ",
        "",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "first number of a pair before the start",
        "gaussian.cu",
        "if (index >= args.offset) ",
        "",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "blocks do the work of others",
        "gaussian.cu",
        "uint64_t{gridDim.x} * kThreads;",
        "uint64_t{kThreads};",
        "thread",
        says="data race",
    ),
    Bug(
        "numbers past the end",
        "gaussian.cpp",
        "j < 2 * kPairs && i < last;",
        "j < 2 * kPairs;",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "missing barrier before the inner products",
        "orthogonalize.cu",
        "if (!dots) return;\n  __syncthreads();",
        "if (!dots) return;",
        "plain",
        "reverse",
    ),
    Bug(
        "missing barrier before the inner products, as a race",
        "orthogonalize.cu",
        "if (!dots) return;\n  __syncthreads();",
        "if (!dots) return;",
        "thread",
        says="data race",
    ),
    Bug(
        "lanes of a warp that stay apart",
        "orthogonalize.cu",
        "kAllLanes = 0xffffffffu",
        "kAllLanes = 0x0000ffffu",
        "plain",
        says="mask",
    ),
    Bug(
        "every lane writes the sum",
        "orthogonalize.cu",
        "if (lane == 0) args.sums",
        "args.sums",
        "thread",
        says="data race",
    ),
    Bug(
        "inner products with what was not rounded",
        "orthogonalize.cu",
        "      value = rounded;\n",
        "",
        "plain",
    ),
    Bug(
        "entries past the last chunk",
        "orthogonalize.cu",
        "static_cast<int>(left < kDotChunk ? left : kDotChunk)",
        "static_cast<int>(kDotChunk)",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "rows dealt to too few warps",
        "orthogonalize.cu",
        "k < args.num_rows; k += kWarps",
        "k < args.num_rows; k += kWarps + 1",
        "plain",
    ),
    Bug(
        "vectors past the end of a chunk",
        "orthogonalize.cpp",
        "load(w + i + v * kWide, a);",
        "load(w + i + v * kWide + kDotChunk, a);",
        "memory",
        says="buffer-overflow",
    ),
    Bug(
        "32-bit offset of a row of the basis",
        "orthogonalize.cpp",
        "take<1>(chunk.wide, c + k, chunk.q + k * chunk.stride",
        "take<1>(chunk.wide, c + k, chunk.q + int(k) * int(chunk.stride)",
        "undefined",
        wide=True,
        says="signed integer overflow",
    ),
    Bug(
        "32-bit begin of a chunk",
        "orthogonalize.cpp",
        "begin = s * kDotChunk,",
        "begin = int(s) * int(kDotChunk),",
        "undefined",
        wide=True,
        says="signed integer overflow",
    ),
]
EVERYDAY = {"missing barrier before the read", "wrong warp mask", "wrong tensor at its first entry"}


@pytest.fixture(scope="session")
def harness(tmp_path_factory):
    return Harness.shared(tmp_path_factory)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=[] if k == "plain" else pytest.mark.slow) for k in SANITIZERS],
)
def test_the_kernels_pass_every_check(harness, kind):
    program = harness.driver(kind)
    # the race detector keeps a shadow of all memory, reserved or not
    wide = () if kind == "thread" else ("wide",)
    for order in ORDERS:
        outcome = harness.run(program, order, *wide)
        assert not outcome.caught, f"{order}:\n{outcome.output}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", planted(BUGS, lambda bug: (bug.file, bug.kind), EVERYDAY))
def test_a_planted_bug_is_caught(harness, bug, tmp_path):
    source = tmp_path / "kernels"
    shutil.copytree(KERNELS, source)
    path = source / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1, "the planted line is not in the source any more"
    path.write_text(text.replace(bug.old, bug.new))
    program = harness.driver(bug.kind, mutated=path)
    outcome = harness.run(program, bug.order, *(["wide"] if bug.wide else []))
    assert outcome.caught
    assert not bug.says or any(word in outcome.output for word in bug.says.split("|")), (
        outcome.output
    )


# The emulation itself, on kernels with barriers, shared tiles and atomics.
EMULATOR_BUGS = {
    1: ("missing barrier before the read", "plain", "reverse"),
    2: ("missing barrier after the read", "plain", "warps"),
    3: ("no bounds check", "address", "forward"),
    4: ("one row past a shared array", "address", "forward"),
    5: ("blocks race without an atomic", "thread", "forward"),
    6: ("barrier for half of the block", "plain", "forward"),
    7: ("every lane writes the result", "plain", "forward"),
    8: ("lanes that never come to a shuffle", "plain", "forward"),
    9: ("misaligned vector load", "address", "forward"),
    10: ("tail of a shared tile left unwritten", "plain", "forward"),
    11: ("missing barrier between warps", "thread", "forward"),
    12: ("past the end of dynamic shared memory", "address", "forward"),
    13: ("lost atomic in one block", "thread", "forward"),
}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", SANITIZERS)
def test_the_emulation_finds_nothing_in_correct_kernels(harness, kind):
    program = harness.link(
        kind, [harness.compile(HERE / "planted_bugs.cu", kind, "-DBUG=0", "-Wno-tsan")]
    )
    for order in ORDERS:
        outcome = harness.run(program, order)
        assert not outcome.caught, f"{order}:\n{outcome.output}"


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(n, id=name, marks=[] if n in (1, 6) else pytest.mark.slow)
        for n, (name, _, _) in EMULATOR_BUGS.items()
    ],
)
def test_the_emulation_catches_a_planted_bug(harness, number):
    _, kind, order = EMULATOR_BUGS[number]
    program = harness.link(
        kind, [harness.compile(HERE / "planted_bugs.cu", kind, f"-DBUG={number}", "-Wno-tsan")]
    )
    assert harness.run(program, order).caught
