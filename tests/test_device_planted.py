"""Bugs planted into the grid program for devices, each caught by a named test on the emulation.

Those of the contractions' own kernels are in test_device_contraction.py and
test_device_tensor_cores.py, those of the Python side in tests/planted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import pytest
from native.device_module import NAME, DeviceModule, sources
from native.harness import COMPILER, marks, planted
from planted.runner import ROOT, Workspace

pytest.importorskip("landscapex._program_emulated")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

DRIVER = "tests/test_device_driver.py::"
STEPS = "tests/test_device_steps.py::"
KERNELS = "tests/test_program_kernels.py::"
LOSSES = "tests/test_program_losses.py::"
FLOAT64 = DRIVER + "test_a_program_is_that_of_float64_at_every_point"
CHUNKS = DRIVER + "test_bits_do_not_depend_on_the_size_of_chunks"
BLOCKS = DRIVER + "test_blocks_that_do_whole_cells_give_the_same_bits"
ZEROS = DRIVER + "test_a_chunk_begins_with_sums_of_zero"
CENTER = DRIVER + "test_products_without_directions_are_those_of_the_centre"
SHARED = DRIVER + "test_runners_that_share_a_program_keep_their_own_weights"
MANY = DRIVER + "test_more_weights_for_tensor_cores_than_one_launch_rounds"
EPILOGUE = "test_a_kernel_computes_what_torch_computes[emulated CUDA-epilogue-residual-1-16]"
LONG = STEPS + "test_long_rows_are_those_of_float64"
LEFT = "test_blocks_that_do_whole_cells_leave_long_rows_to_their_kernels"
SPECIAL = "test_cross_entropy_of_special_scores_is_that_of_torch[emulated CUDA-row"
LONG_ORDER = STEPS + "test_long_rows_have_the_same_bits_in_any_order"
EVERY = DRIVER + "test_sums_take_every_sample_of_tiles_of_any_size"
WAIT = STEPS + "test_steps_of_a_block_wait_for_each_other"
CELL = STEPS + "test_a_block_that_does_a_whole_cell_computes_the_same_bits"


@dataclass(frozen=True)
class Bug:
    """A change of one place, and the test that must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    unit: str = ""


WORKSPACE = "program/device_program.cpp"
ARGS, FORM, NETWORK = "program/device_args.cpp", "program/form.cu", "program/network.cu"
LOSS, TEAM, QUAD = "program/loss.cuh", "program/team.cuh", "program/quad.cuh"
FIRST_PART = "#pragma unroll\n    for (int i = 0; i < kQuad; ++i) {\n      mine.v[i] = shared[i];\n"
BUGS = [
    # weights of a point
    Bug("coordinates of the first point", FORM,
        "args.coordinates + blockIdx.y * (args.num_sets - 1)", "args.coordinates",
        FLOAT64 + "[fp32]"),
    Bug("one direction too few", FORM, "k = 1; k < args.num_sets", "k = 1; k + 1 < args.num_sets",
        FLOAT64 + "[fp32]"),
    Bug("one direction read for another", FORM, "sets + k * args.size + i", "sets + args.size + i",
        FLOAT64 + "[fp32]"),
    Bug("weights of the first point", FORM, "args.formed + blockIdx.y * args.size",
        "args.formed + 0 * blockIdx.y * args.size", FLOAT64 + "[fp32]"),
    Bug("planes of the first point", FORM, "+ blockIdx.y * target.per_point",
        "+ 0 * blockIdx.y * target.per_point", FLOAT64 + "[bf16x3]"),
    Bug("planes of another weight", FORM, "last_not_after(given.begin, args.num_planes, i)", "0",
        FLOAT64 + "[bf16x3]"),
    Bug("sets of the first point", FORM, "args.sets + blockIdx.y * args.per_point", "args.sets",
        FLOAT64 + "[bf16x3]"),
    Bug("planes of the first launch again", FORM, "args.planes[first + p]", "args.planes[p]", MANY),
    Bug("planes after the first launch left out", FORM, "while (first < args.num_planes)",
        "while (false)", MANY),
    # what is laid out before a run
    Bug("zeros around all sets of a product", FORM, "k == 0 ? args.value : 0.0f", "args.value",
        FLOAT64 + "[fp32]"),
    Bug("products' halos of the centre only", WORKSPACE,
        "args.num_sets = num_sets_;\n      args.per", "args.num_sets = 1;\n      args.per", ZEROS),
    Bug("halos of the first call's size", WORKSPACE,
        "  call.tiles = call.most_tiles;\n  call.points = call.most_points;\n", "",
        DRIVER + "test_a_call_of_one_point_prepares_the_memory_of_all"),
    Bug("tiles and points exchanged", WORKSPACE,
        "call.most_points * arena_floats_, arena_floats_, 0}",
        "arena_floats_, call.most_points * arena_floats_, 0}", FLOAT64 + "[fp32]"),
    Bug("shared memory as large as its last buffer", WORKSPACE,
        "sizes[b.storage] = std::max(sizes[b.storage], aligned(b.elements * lanes_))",
        "sizes[b.storage] = aligned(b.elements * lanes_)", FLOAT64 + "[fp32]"),
    # parts of the workspace
    Bug("sums of all points in one place", WORKSPACE, "tiles * points * num_terms()",
        "tiles * num_terms()", CHUNKS + "[(1, 1)-fp32]"),
    Bug("weights of all points in one place", WORKSPACE, "points * floats(Numbers::moving));",
        "floats(Numbers::moving));", FLOAT64 + "[fp32]"),
    Bug("no room for zeros", WORKSPACE, "call.workspace, largest_weight_)", "call.workspace, 0)",
        FLOAT64 + "[fp32]"),
    Bug("zeros for the last weight only", WORKSPACE, "std::max(largest_weight_, sizes[w])",
        "sizes[w]", FLOAT64 + "[fp32]"),
    Bug("planes of all points in one place", WORKSPACE,
        "rows * plane_bytes_[static_cast<int>(kind)]);", "plane_bytes_[static_cast<int>(kind)]);",
        FLOAT64 + "[bf16x3]"),
    Bug("planes of one weight overlap", WORKSPACE,
        "end += r.layout.planes * aligned_bytes(r.bytes())", "end += aligned_bytes(r.bytes())",
        FLOAT64 + "[bf16x3]"),
    # products
    Bug("fixed weights count in every direction", WORKSPACE,
        "sets == Sets::kDirections ? w.zeros : call.fixed + p.offset", "call.fixed + p.offset",
        FLOAT64 + "[fp32]"),
    Bug("directions' weights are the centre's", WORKSPACE, "(center ? 0 : row) + p.offset",
        "p.offset", FLOAT64 + "[fp32]"),
    Bug("directions' products over the centre's", WORKSPACE,
        "        ref.data += product_floats_;\n", "", FLOAT64 + "[fp32]"),
    Bug("products of the first direction only", WORKSPACE, "1 : num_sets_ - 1;", "1 : 1;",
        FLOAT64 + "[fp32]"),
    Bug("products of the centre only", WORKSPACE,
        "if (sets == Sets::kPoints) ref.per_set = product_floats_;", "", FLOAT64 + "[fp32]"),
    Bug("directions where there are none", WORKSPACE, "if (num_sets_ > 1) run_steps",
        "run_steps", CENTER),
    Bug("products once more for each point", WORKSPACE,
        "if (is_shared_[i] == (sets != Sets::kPoints)) steps.push_back", "steps.push_back",
        FLOAT64 + "[fp32]"),
    # planes
    Bug("fixed planes for every point", WORKSPACE, "ref.per_point = once ? 0 : ",
        "ref.per_point = false ? 0 : ", FLOAT64 + "[bf16x3]"),
    Bug("low parts are the high ones", WORKSPACE, "(p < r.layout.planes ? p : 0)", "0 * p",
        FLOAT64 + "[bf16x3]"),
    Bug("targets in the order of the steps", WORKSPACE, "return a.begin < b.begin;",
        "return &a < &b;", FLOAT64 + "[bf16x3]"),
    Bug("one layout for two shapes", WORKSPACE, "if (fits && same->taps == c->num_taps)",
        "if (fits || same->taps > 0)", FLOAT64 + "[bf16x3]"),
    Bug("no planes of fixed weights", WORKSPACE, "  form_kind(call, Numbers::fixed, stream);\n", "",
        FLOAT64 + "[bf16x3]"),
    Bug("no planes of weights of points", WORKSPACE,
        "  form_kind(call, Numbers::per_point, stream);\n", "", FLOAT64 + "[bf16x3]"),
    Bug("weights left behind by another runner", WORKSPACE, "  choose_planes();\n  in_blocks_",
        "  if (rounded_of_.empty()) choose_planes();\n  in_blocks_", SHARED + "[fixed-bf16x3]"),
    Bug("the places of another runner", WORKSPACE,
        "  placed_.clear();\n  std::fill(std::begin(floats_), std::end(floats_), 0);\n", "",
        SHARED + "[fixed-fp32]"),
    # sums and outputs
    Bug("sums of the call before", WORKSPACE,
        "static_cast<size_t>(cells * num_terms()) * sizeof(double)", "0", ZEROS),
    Bug("tiles of one group", FORM, "args.owner[t] * args.most_points",
        "args.owner[0] * args.most_points", FLOAT64 + "[fp32]"),
    Bug("tiles added from the last", FORM, "args.terms[t * of_tile + i]",
        "args.terms[(args.tiles - 1 - t) * of_tile + i]", CHUNKS + "[(1, 1)-fp32]"),
    Bug("the last tile left out", FORM, "t < args.tiles; ++t)", "t + 1 < args.tiles; ++t)",
        FLOAT64 + "[fp32]"),
    Bug("outputs of tiles and points exchanged", WORKSPACE, "call.points * cell, cell, 0}",
        "cell, call.points * cell, 0}", FLOAT64 + "[fp32]"),
    Bug("outputs of the first launch again", WORKSPACE, "o.at.data() + i, args.count",
        "o.at.data(), args.count", FLOAT64 + "[fp32]"),
    Bug("outputs over each other", WORKSPACE, "      args.to.data += args.count * lanes_;\n", "",
        FLOAT64 + "[fp32]"),
    Bug("outputs that blocks did not store", WORKSPACE, "in_blocks_ && call.values == nullptr",
        "in_blocks_",
        DRIVER + "test_outputs_of_a_program_that_blocks_could_do_are_those_of_its_steps"),
    # tables
    Bug("a residual where results go", ARGS, "a.residual_at = tables_.of(s.runs, 2)",
        "a.residual_at = tables_.of(s.runs, 1)", KERNELS + EPILOGUE),
    Bug("tables follow each other without gaps", ARGS,
        "image_->resize((image_->size() + kAlign - 1) / kAlign * kAlign);", "", FLOAT64 + "[fp32]"),
    # whole cells in blocks
    Bug("no barrier between steps", NETWORK, "network.cells, cell);\n    __syncthreads();",
        "network.cells, cell);", WAIT + "[reverse]"),
    Bug("halos of blocks are zeros", NETWORK, "i < network.num_filled", "i < 0",
        BLOCKS + "[(3, 7)]"),
    Bug("halos and zeros race", NETWORK, "memory[i] = value;\n  __syncthreads();",
        "memory[i] = value;", BLOCKS + "[(3, 7)]"),
    Bug("a part of the memory is left as it was", NETWORK, "fill(memory, 0, network.floats, 0)",
        "fill(memory, 0, network.floats / 8, 0)", CELL + "[convolution-3x3]"),
    Bug("long rows in blocks", NETWORK, "std::none_of(steps.begin(), steps.end(), has_long_rows)",
        "true", STEPS + LEFT + "[softmax-128-False]"),
    Bug("halos of blocks too short", WORKSPACE,
        "static_cast<int32_t>(aligned(b.elements * lanes_))", "static_cast<int32_t>(b.elements)",
        BLOCKS + "[(3, 7)]"),
    # sums of a cell
    Bug("lanes without a sample count", LOSS, "if (walk.column() < valid) sum", "sum",
        EVERY + "[48]", "loss.cu"),
    Bug("sums of another cell", LOSS, "(cell.tile * cells.points + cell.point) * cells.num_terms",
        "(cell.point * cells.tiles + cell.tile) * cells.num_terms", FLOAT64 + "[fp32]", "loss.cu"),
    Bug("a sum that replaces the one before", LOSS, "+ term] += sums[0];", "+ term] = sums[0];",
        STEPS + "test_sums_of_two_steps_may_go_to_one_term", "loss.cu"),
    Bug("slots added before they are there", LOSS,
        "    sums[slot] = sum;\n  }\n  __syncthreads();\n", "    sums[slot] = sum;\n  }\n",
        EVERY + "[112]", "loss.cu"),
    Bug("slots added without a barrier", LOSS, "sums[slot + half];\n    __syncthreads();",
        "sums[slot + half];", EVERY + "[112]", "loss.cu"),
    Bug("earlier classes lose draws", LOSS, "(x == own && label > c)", "(x == own && label < c)",
        LOSSES + "test_hits_among_the_largest_scores[emulated CUDA-0-1]", "loss.cu"),
    Bug("an infinite score is believed", LOSS, "most == kInfinity ? most - most : log1p(rest)",
        "log1p(rest)", LOSSES + SPECIAL + "3-1]", "loss.cu"),
    # rows
    Bug("parts of a row added before they are there", TEAM, f"    __syncthreads();\n{FIRST_PART}",
        FIRST_PART, LONG + "[softmax-128]", "softmax.cu"),
    Bug("parts of a row overwritten", TEAM, "    }\n    __syncthreads();\n    return mine;",
        "    }\n    return mine;", LONG_ORDER + "[warps-softmax]", "softmax.cu"),
    Bug("half of a warp's parts", TEAM, "apart >= kTeamQuads", "apart > kTeamQuads",
        LONG + "[softmax-128]", "softmax.cu"),
    Bug("rows and lanes exchanged", TEAM, "blockIdx.x / blocks)", "blockIdx.x % blocks)",
        LONG + "[norm-128]", "normalize.cu"),
    Bug("long sums in single precision", TEAM, "if (++count_ % kPart == 0) flush();", "++count_;",
        KERNELS + "test_a_long_mean_is_as_exact_as_a_short_one[emulated CUDA]", "reduce.cu"),
    # the rest
    Bug("rows of items repeated", QUAD, "    column_ -= width_;\n    ++row_;",
        "    column_ -= width_;", EVERY + "[48]", "loss.cu"),
    Bug("one set of an affine operand", QUAD, "base_ + k * per_set_ + offset",
        "base_ + per_set_ + offset",
        KERNELS + "test_map_follows_tables_of_every_shape[emulated CUDA-2]", "map.cu"),
    Bug("NaN is no maximum", "program/math.cuh",
        "return a > b || a != a ? a : b; }\n__device__ __forceinline__ float minimum",
        "return fmaxf(a, b); }\n__device__ __forceinline__ float minimum",
        KERNELS + "test_map_keeps_nan[emulated CUDA-maximum]", "map.cu"),
    Bug("a row past the last", "program/matmul.cuh",
        "if (row + i >= rows || column + j >= columns) continue;",
        "if (column + j >= columns) continue;",
        KERNELS + "test_matmul_of_any_size[emulated CUDA-size4]", "matmul.cu"),
]  # fmt: skip


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return DeviceModule(tmp_path_factory)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    with Workspace(tmp_path_factory.mktemp("workspace")) as copied:
        yield copied


def failure(workspace: Workspace, library, tests: list[str]) -> str | None:
    """What pytest says if tests fail with this library of the emulated device."""
    shutil.copy(library, workspace.folder / "landscapex" / NAME)
    try:
        return workspace.run(tests)
    except RuntimeError as error:
        if "status -" in str(error):  # killed by a signal
            return str(error)
        raise


PARAMETERS = planted(BUGS, lambda bug: bug.file)
CHECKED = [p.values[0] for p in PARAMETERS if pytest.mark.thorough not in p.marks]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "bugs",
    [
        pytest.param(bugs, id=name, marks=marks(name == "checked"))
        for name, bugs in {"checked": CHECKED, "all": BUGS}.items()
    ],
)
def test_without_a_bug_the_tests_pass(module, workspace, bugs):
    """Otherwise they would find anything."""
    if said := failure(workspace, module.build(), sorted({bug.test for bug in bugs})):
        pytest.fail(said, pytrace=False)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("bug", PARAMETERS)
def test_a_planted_bug_is_caught(module, workspace, bug):
    library = module.plant(bug.file, bug.old, bug.new, bug.unit)
    assert failure(workspace, library, [bug.test])


@pytest.mark.parametrize("bug", [pytest.param(b, id=b.name) for b in BUGS])
def test_a_planted_bug_fits_the_sources(bug):
    assert (ROOT / "csrc" / bug.file).read_text().count(bug.old) == 1
    assert not bug.unit or bug.unit in sources()
    file, _, name = bug.test.partition("::")
    assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text()
