"""Contractions in fp32, emulated: tests/emulation/contraction.cpp says what is compared.

Every kernel against float64 in plain loops and against the others bit for bit, threads in all
orders, sanitizers; and bugs planted into the sources, each caught by one of these.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
from native.harness import COMPILER, ORDERS, ROOT, SANITIZERS, Harness, planted, whole

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
PROGRAM = ROOT / "csrc" / "program"
DRIVER = ROOT / "tests" / "emulation" / "contraction.cpp"


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness.shared(tmp_path_factory)


def build(harness, kind, program=PROGRAM):
    """The test program, which includes the kernels from the folder `program`."""
    return harness.link(whole(kind), [harness.compile(DRIVER, kind, include=program)])


def results(outcome):
    return [line for line in outcome.output.splitlines() if " bits " in line]


@pytest.mark.timeout(300)
def test_every_kernel_agrees_with_float64_and_with_the_others(harness):
    outcome = harness.run(build(harness, "plain"), "forward")
    assert not outcome.caught, outcome.output
    assert len(results(outcome)) > 20  # the end of a long output


@pytest.mark.timeout(300)
def test_results_have_the_same_bits_in_any_order_of_threads(harness):
    program = build(harness, "plain")
    outcomes = [harness.run(program, order, "quick") for order in ORDERS]
    assert not any(o.caught for o in outcomes), [o.output for o in outcomes]
    assert len(results(outcomes[0])) == 9
    assert all(results(o) == results(outcomes[0]) for o in outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [k for k in SANITIZERS if k != "plain"])
def test_sanitizers_find_nothing(harness, kind):
    program = build(harness, kind)
    for order in ORDERS:
        outcome = harness.run(program, order, "quick")
        assert not outcome.caught, f"{order}:\n{outcome.output}"


@dataclass(frozen=True)
class Bug:
    """A change of one place, and the build whose run must fail."""

    name: str
    old: str
    new: str
    file: str
    kind: str = "plain"
    order: str = "forward"
    says: str = ""


COMMON, BLOCK, TILE = "contract.cuh", "contract_block.cuh", "contract_tile.cuh"
STRIP, CHOICE = "contract_strip.cuh", "contract.cu"
BARRIER = "    __syncthreads();\n"
LEFT = "    __syncthreads();  // all have left the stretch before\n"
PUT = "    put_stretch<T>(args, row, lanes, begin, end, weights, offsets);\n"
FLOAT64, BITS, WRITES = "agrees with float64", "the same bits", "nothing else"
BUGS = [
    # tiles: barriers and stages
    Bug("no barrier", BARRIER, "", TILE, says=BITS),
    Bug("no barrier, as a race", BARRIER, "", TILE, kind="thread", says="data race"),
    Bug("one stage instead of two", "(stage == shared ? T::kStageFloats : 0)", "0", TILE,
        order="warps", says=BITS),
    Bug("one stage instead of two, as a race", "(stage == shared ? T::kStageFloats : 0)", "0",
        TILE, kind="thread", says="data race"),
    Bug("taps beyond the last are +0 times 0", ": splat(-0.f)", ": splat(0.f)", TILE, says=BITS),
    Bug("inputs beyond the last tap are those of another",
        "exists ? load(in_ + offsets_[j] * lanes_) : splat(0)",
        "load(in_ + offsets_[j] * lanes_)", TILE, says=BITS),
    Bug("weights beyond the last tap", "r < num_taps ? load(row_.data + r * kRows) : splat(-0.f)",
        "load(row_.data + r * kRows)", TILE, kind="memory", says="heap-buffer-overflow"),
    Bug("a table's end", "if (r < num_taps) offsets_[j] = taps[r];", "offsets_[j] = taps[r];",
        TILE, kind="memory", says="heap-buffer-overflow"),
    Bug("outputs beyond the last are loaded", "min(first_output + own_output(), outputs - kWidth)",
        "first_output + own_output()", TILE, kind="memory"),
    Bug("tiles stored beyond the last column", "if (index < columns) finish", "finish", TILE,
        kind="thread", says="data race"),
    Bug("second half of a tile's columns", "v * (T::kBlockColumns / T::kVectors) + across",
        "v * kQuad + across", TILE),
    # strips
    Bug("strips: no barrier after the weights", PUT + BARRIER, PUT, STRIP, order="reverse",
        says=BITS),
    Bug("strips: no barrier before the weights", LEFT, "", STRIP, kind="thread",
        says="data race"),
    Bug("strips: offsets not repeated", "args.taps[r < end ? r : end - 1]", "args.taps[r]", STRIP,
        kind="memory", says="heap-buffer-overflow"),
    Bug("strips: one tap too few at the end", "j < T::kAhead - 1; ++j", "j < T::kAhead - 2; ++j",
        STRIP, says=BITS),
    Bug("strips: an input not yet fetched again", "fetch(j, tap + j + T::kAhead);",
        "fetch(j, tap + j + T::kAhead - 1);", STRIP, says=BITS),
    # long sums
    Bug("one chain for long sums", "end = end_of_stretch(begin, num_taps);", "end = num_taps;",
        COMMON, says=FLOAT64),
    Bug("totals of the neighbour", "shared + threadIdx.x * kQuad", "shared + threadIdx.x / 2 * 8",
        BLOCK, says=BITS),
    Bug("last stretch left out", "load(own_ + (v * kCount + i) * kThreadsOfBlock * kQuad) + sums",
        "load(own_ + (v * kCount + i) * kThreadsOfBlock * kQuad) + splat(0), sums", BLOCK,
        says=BITS),
    Bug("bias counted in no stretch", "Quad totals[kCount];\n#pragma unroll\n    for (int i = 0; "
        "i < kCount; ++i) totals[i] = sums[i];", "Quad totals[kCount] = {};", COMMON,
        says=FLOAT64),
    # what all have
    Bug("larger blocks last", "block * small + (block < larger ? block : larger)",
        "block * small + (block < count - larger ? 0 : block - count + larger)", COMMON),
    Bug("weights of the first group for all", "int64_t{group} * (args.outputs * args.num_taps)",
        "int64_t{0 * group} * (args.outputs * args.num_taps)", COMMON, says=FLOAT64),
    Bug("inputs of the first group for all", "args.group[group]", "args.group[0 * group]", COMMON,
        says=FLOAT64),
    Bug("outputs beyond the last are stored", "if (i < outputs.count) store", "store", COMMON,
        kind="thread", says="data race"),
    Bug("outputs beyond the last are read", "min(first + i, outputs - 1)", "first + i", COMMON,
        kind="memory", says="heap-buffer-overflow"),
    Bug("shift before scale", "x * factor", "x + factor", COMMON, says=FLOAT64),
    Bug("no sets but the first", "k < num_sets; ++k)", "k < 1; ++k)",
        COMMON, says=FLOAT64),
    Bug("NaN is rectified away", "return relu(x);", "return fmaxf(x, 0.f);", COMMON,
        says="NaN and infinities"),
    Bug("activation of one output too few", "for (int i = 0; i < count; ++i) {\n    float* p",
        "for (int i = 1; i < count; ++i) {\n    float* p", COMMON, says=FLOAT64),
    Bug("misaligned weights taken for aligned",
        "if (reinterpret_cast<uintptr_t>(item.weights) % sizeof(float4) == 0)", "", COMMON,
        kind="undefined", says="misaligned"),
    Bug("misaligned weights in tiles", " && args.weight.per_point % kQuad == 0", "", CHOICE,
        kind="undefined", says="misaligned"),
    Bug("rows past a block", "left < most_rows ? left : most_rows", "most_rows", COMMON),
    Bug("a lane of the neighbour", "(column - position * quads) * kQuad",
        "(column - position * quads) * 2", COMMON, kind="memory",
        says="writes its outputs and nothing else"),
    Bug("columns beyond the last", "index < columns ? index : columns - kQuad", "index", BLOCK,
        kind="memory", says="heap-buffer-overflow"),
    Bug("blocks of other columns", "static_cast<int>(column % across) * kBlockColumns",
        "static_cast<int>(column % across) * kQuad", BLOCK),
    Bug("small steps on tensor cores", "args.math != Math::kFp32 && takes", "args.math != "
        "Math::kFp32 || takes", CHOICE),
]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", planted(BUGS, lambda bug: (bug.file, bug.kind)))
def test_a_planted_bug_is_caught(harness, bug, tmp_path):
    for folder in ("program", "kernels"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / folder)
    path = tmp_path / "program" / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1, "the planted line is not in the source any more"
    path.write_text(text.replace(bug.old, bug.new))
    outcome = harness.run(build(harness, bug.kind, path.parent), bug.order, "quick")
    assert outcome.caught
    assert bug.says in outcome.output, outcome.output
