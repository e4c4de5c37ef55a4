"""Contractions on tensor cores, emulated: tests/emulation/tensor_cores.cpp says what is compared.

Every arithmetic against float64 in plain loops, both models of how a tensor core sums, threads in
all orders, sanitizers; and bugs planted into the sources, each caught by one of these.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
from native.harness import COMPILER, ORDERS, ROOT, SANITIZERS, Harness, planted, whole

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
PROGRAM = ROOT / "csrc" / "program"
DRIVER = ROOT / "tests" / "emulation" / "tensor_cores.cpp"


@pytest.fixture(scope="module")
def harness(tmp_path_factory):
    return Harness.shared(tmp_path_factory)


def build(harness, kind, kernel=PROGRAM, driver=PROGRAM):
    """The test program; `kernel` and `driver` are where each finds its headers."""
    return harness.link(
        whole(kind),
        [
            harness.compile(kernel / "contract_mma.cu", kind, include=kernel),
            harness.compile(DRIVER, whole(kind), include=driver),
        ],
    )


def results(outcome):
    return [line for line in outcome.output.splitlines() if " bound " in line]


@pytest.mark.timeout(300)
def test_products_agree_with_float64(harness):
    program = build(harness, "plain")
    outcome = harness.run(program, "forward")
    assert not outcome.caught, outcome.output
    assert len(results(outcome)) > 20  # the end of a long output


@pytest.mark.timeout(300)
def test_products_agree_with_float64_if_tensor_cores_cut_their_sums(harness):
    program = build(harness, "plain")
    outcome = harness.run(program, "forward", "quick", "truncate")
    assert not outcome.caught, outcome.output
    rounded = harness.run(program, "forward", "quick")
    assert results(outcome) != results(rounded)


@pytest.mark.timeout(300)
def test_products_have_the_same_bits_in_any_order_of_threads(harness):
    program = build(harness, "plain")
    outcomes = [harness.run(program, order, "quick") for order in ORDERS]
    assert not any(o.caught for o in outcomes), [o.output for o in outcomes]
    assert len(results(outcomes[0])) == 9  # three cases, three kinds of arithmetic
    assert all(results(o) == results(outcomes[0]) for o in outcomes)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", [k for k in SANITIZERS if k != "plain"])
def test_sanitizers_find_nothing(harness, kind):
    program = build(harness, kind)
    for order in ORDERS:
        outcome = harness.run(program, order, *([] if order == "warps" else ["quick"]))
        assert not outcome.caught, f"{order}:\n{outcome.output}"


@dataclass(frozen=True)
class Bug:
    """A change of one place, and the build whose run must fail."""

    name: str
    old: str
    new: str
    file: str = "program/contract_mma.cu"
    kind: str = "plain"
    order: str = "forward"
    says: str = ""


HEADER, STORE, PTX = "program/contract_mma.h", "program/contract_mma.cuh", "kernels/ptx.cuh"
WAIT = "    ptx::wait_group<0>();\n"
BARRIER = "    __syncthreads();\n"
COPIES = """    if (stage + 1 < stages) {
      weights.start(shared + (stage + 1) % 2 * W::kStageBytes, (stage + 1) * W::kAlong);
      ptx::commit_group();
    }
"""
COMMENT = (
    "    // Two things at once: the weights of this stage are visible to all threads, and all have "
    "left\n    // the stage before, whose place the next copies take.\n"
)
LAST = "      multiply<kMath>(sums[i], a[0], b.words[0][s]);"
EXISTS = "const bool exists = block * kRows + row < rows_ && taps > 0;"
A_ROW = "(lane / 8 % 2 * W::kAlong + lane / 16) * kMatrixBytes + lane % 8 * 16"
BIAS = "if (bias) v = each(plus, v, splat(bias[output]));\n"
SCALE = "if (scale) v = each(times, v, splat(scale[output]));\n"
BUGS = [
    # copies, waits and barriers
    Bug("no wait", WAIT, "", says="in flight"),
    Bug("one copy may be missing", "wait_group<0>", "wait_group<1>"),
    Bug("no barrier", BARRIER, ""),
    Bug("no barrier, as a race", BARRIER, "", kind="thread", says="data race"),
    Bug("barrier before the wait", WAIT + COMMENT + BARRIER, BARRIER + WAIT),
    Bug(
        "copies begin before the barrier", WAIT + COMMENT + BARRIER + COPIES,
        COPIES.replace("(stage + 1 < stages)", "(stage > 0 && stage + 1 < stages)") + WAIT + BARRIER
        + COPIES.replace("(stage + 1 < stages)", "(stage == 0 && stage + 1 < stages)"),
        order="warps",
    ),
    Bug("barrier for busy warps", BARRIER, "    if (busy) __syncthreads();\n"),
    Bug("first copies never committed", "weights.start(shared, 0);\n  ptx::commit_group();",
        "weights.start(shared, 0);"),
    Bug("copies into the stage in use", "(stage + 1) % 2 * W::kStageBytes",
        "stage % 2 * W::kStageBytes"),
    Bug("products of the other stage", "shared + stage % 2", "shared + (stage + 1) % 2"),
    Bug("half a warp goes ahead", "if (slice >= slices) break;",
        "if (slice >= slices || (slice == slices - 1 && lane > 15)) break;"),
    # weights in shared memory
    Bug("rows of the weights exchanged", A_ROW,
        "(lane / 16 * W::kAlong + lane / 8 % 2) * kMatrixBytes + lane % 8 * 16"),
    Bug("a row of the weights repeated", A_ROW,
        "(lane / 8 % 2 * W::kAlong + lane / 16) * kMatrixBytes + lane % 4 * 16"),
    Bug("misaligned matrix", A_ROW,
        "(lane / 8 % 2 * W::kAlong + lane / 16) * kMatrixBytes + lane % 8 * 16 + 4",
        says="misaligned"),
    Bug("all slices read the first", "here + s * Format", "here + 0 * s * Format"),
    Bug("second row of warps reads the first", "warp % S::kWarpsM * (S::kWarpRows / kRows)",
        "0 * (S::kWarpRows / kRows)"),
    Bug("taps beyond the last are copied", "exists ? taps * (16 / F::kWidth) : 0",
        "exists ? 16 : 0"),
    Bug("matrices beyond the last tap are copied", EXISTS,
        "const bool exists = block * kRows + row < rows_;", kind="memory"),
    Bug("outputs beyond the last are copied", EXISTS, "const bool exists = taps > 0;",
        kind="memory", says="heap-buffer-overflow"),
    Bug("weights of the first point for all", "cell.point * args.planes.per_point",
        "0 * cell.point * args.planes.per_point"),
    Bug("weights of the first group for all", "(group * blocks + first_row / kRows)",
        "(0 * group * blocks + first_row / kRows)"),
    Bug("high parts for low ones", "plane == 1 ? planes_", "plane == 2 ? planes_"),
    # inputs
    Bug("inputs beyond the last tap", "tap(slice, i) < num_taps_ ? load(base_ + offsets[i])",
        "tap(slice, i) >= 0 ? load(base_ + offsets[i])"),
    Bug("a tap beyond the last", "taps_[r < num_taps_ ? r : num_taps_ - 1]", "taps_[r]",
        kind="memory", says="heap-buffer-overflow"),
    Bug("columns beyond the last", "wanted < columns ? wanted : 0", "wanted", kind="memory",
        says="heap-buffer-overflow"),
    Bug("columns in another order", "lane / 8 * 4 + lane / 4 % 2 * 16", "lane / 4 * 4"),
    Bug("pairs of taps exchanged", "8 * (i / 2) + 2 * t + i % 2", "8 * (i % 2) + 2 * t + i / 2"),
    Bug("inputs of the first group for all", "args.at[position] + args.group[group]",
        "args.at[position] + args.group[0]"),
    Bug("halves of a pair exchanged", "const uint32_t high = ptx::pack_bf16(first, second);",
        "const uint32_t high = ptx::pack_bf16(second, first);"),
    Bug("inputs not rounded to tf32", "ptx::round_to_tf32(values[2 * s + i].v[j])",
        "__float_as_uint(values[2 * s + i].v[j])", says="not rounded"),
    # products
    Bug("operand's registers exchanged", "ptx::mma_bf16(sums[j], a, b[j][0], b[j][1]);",
        "ptx::mma_bf16(sums[j], a, b[j][1], b[j][0]);"),
    Bug("low parts with low parts", "multiply<kMath>(sums[i], a[0], b.words[1][s]);",
        "multiply<kMath>(sums[i], a[1], b.words[1][s]);"),
    Bug("a product left out", "multiply<kMath>(sums[i], a[1], b.words[0][s]);", ";"),
    Bug("one half of a slice in tf32", LAST, "      if (s == 0) multiply<kMath>(sums[i], a[0], "
        "b.words[0][s]);"),
    # what follows
    Bug("result's registers exchanged", "const int k = n % 2 * 2 + q;",
        "const int k = n % 2 + 2 * q;"),
    Bug("bias of the neighbour", "splat(bias[output])", "splat(bias[first_output_])"),
    Bug("bias after the scale", f"{BIAS}        {SCALE}", f"{SCALE}        {BIAS}"),
    Bug("NaN is rectified away", "v = each(relu, v);",
        "v = each([](float x) { return fmaxf(x, 0.0f); }, v);"),
    Bug("activation of other columns", "n % kQuad + n / kQuad % 2 * 16",
        "n % kQuad + n / kQuad % 2 * 4"),
    Bug("outputs beyond the last are stored", "if (row >= args_.outputs) break;", ";",
        kind="memory"),
    Bug("columns beyond the last are stored", "if (column_ + 16 * q >= columns_) break;", ";",
        kind="memory"),
    # planes
    Bug("larger blocks forgotten", "layout.larger = outputs % layout.row_blocks;",
        "layout.larger = 0;", HEADER),
    Bug("a tap's place", "+ r % along;", "+ (r + 1) % along;", HEADER),
    Bug("weights not rounded to tf32", "landscapex::cuda::ptx::round_to_tf32(value)",
        "bit_cast<uint32_t>(value)", STORE, says="not rounded"),
    Bug("low parts of the weights are zero", "narrow<BFloat16>(value - widen(high))",
        "narrow<BFloat16>(value - value)", STORE),
    # the emulation's own tables
    Bug("rows of a tf32 operand", "(row < 8 ? 0 : 1) + (k < 4 ? 0 : 2)",
        "(row < 8 ? 0 : 2) + (k < 4 ? 0 : 1)", PTX, says="tf32 fragments"),
    Bug("rows of a bf16 operand", "(row < 8 ? 0 : 1) + (k < 8 ? 0 : 2)",
        "(row < 8 ? 0 : 2) + (k < 8 ? 0 : 1)", PTX, says="bf16 fragments"),
]  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", planted(BUGS, lambda bug: (bug.file, bug.kind)))
def test_a_planted_bug_is_caught(harness, bug, tmp_path):
    for folder in ("program", "kernels"):
        shutil.copytree(ROOT / "csrc" / folder, tmp_path / folder)
    path = tmp_path / bug.file
    text = path.read_text()
    assert text.count(bug.old) == 1, "the planted line is not in the source any more"
    path.write_text(text.replace(bug.old, bug.new))
    mutated = tmp_path / "program"
    headers = PROGRAM if path.suffix == ".cu" else mutated
    outcome = harness.run(
        build(harness, bug.kind, kernel=mutated, driver=headers), bug.order, "quick"
    )
    assert outcome.caught
    assert not bug.says or any(word in outcome.output for word in bug.says.split("|")), (
        outcome.output
    )
