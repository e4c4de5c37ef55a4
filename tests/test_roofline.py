"""The estimates for a device: what is counted, what is read from compilers, what follows of it."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
sys.path.append(str(Path(__file__).parent / "native"))
import cuda_compiler
import roofline
import roofline_code
import roofline_model as model
from roofline_code import Code, Loop
from roofline_launches import Chunk, Launch
from roofline_model import Touch

from landscapex.engine.program import Buffer, Grid, Program, Weight
from landscapex.engine.steps import Contract, table

H100 = roofline.H100
TILE = "contract_tile_kernel<Tile<64, 128, 2>, 1>"
MMA = "contract_mma_kernel<1, Shape<4, 2, 4>>"


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "blocks"),
    [
        (32, 256, 0, 8),  # as many threads as there can be
        (33, 256, 0, 6),  # 1,280 registers for a warp: 12 of them in each quarter
        (104, 32, 0, 16),  # 3,328 registers: four warps in each quarter, not 19 in all
        (128, 256, 0, 2),
        (167, 128, 45056, 3),
        (32, 32, 0, 32),  # as many blocks as there can be
        (32, 32, 227 << 10, 1),
        (32, 32, 113 << 10, 2),
        (32, 32, 114 << 10, 1),  # each block takes 1 KiB more
        (255, 1024, 0, 0),
    ],
)
def test_occupancy_is_that_of_the_vendors_rules(registers, threads, shared, blocks):
    """Units of registers and shared memory as the CUDA Occupancy Calculator has them for 9.0."""
    assert model.resident_blocks(H100, registers, threads, shared) == blocks


def piece(name: str, size: int, *, write: bool) -> Touch:
    return Touch((name, 0), size, write)


def test_what_fits_the_cache_goes_to_memory_once_a_chunk_if_it_is_new():
    write, read = piece("a", 40, write=True), piece("a", 40, write=False)
    launches = [[piece("data", 10, write=False), write], [read]]
    assert model.traffic(launches, 100) == [10, 0]


def test_what_does_not_fit_is_written_and_read_again():
    a = [piece("a", 60, write=True)]
    b = [piece("b", 60, write=True)]
    read = [piece("a", 60, write=False)]
    # b drives a out (60 written); a comes back (60) and drives b out (60); a is clean when it
    # is written again, in place
    assert model.traffic([a, b, read], 100) == [0, 60, 120]
    assert model.traffic([a, b, read], 120) == [0, 0, 0]


def test_what_was_only_read_since_it_was_written_still_goes_to_memory():
    a, b = piece("a", 60, write=True), piece("b", 60, write=True)
    read = piece("a", 60, write=False)
    assert model.traffic([[a], [read], [b]], 100) == [60, 0, 60]


def test_what_is_larger_than_the_cache_always_goes_to_memory():
    launches = [[piece("a", 101, write=True)], [piece("a", 101, write=False)]]
    assert model.traffic(launches, 100) == [101, 101]


def convolution(kernel: str, blocks: int, threads: int = 128) -> tuple[Chunk, Launch]:
    """3 x 3, from 16 to 64 channels of 8 x 8 with a border, in 2 tiles of 32 at 3 points."""
    rows, row = np.divmod(np.arange(64), 8)
    at = table(rows * 10 + row)
    taps = table(np.arange(16)[:, None] * 100 + np.add.outer([0, 10, 20], [0, 1, 2]).reshape(-1))
    step = Contract(
        input=0, taps=table(taps.reshape(-1)), at=at, group=table([0]), out=1,
        to=table(np.arange(64)), channels=table((np.arange(64) * 64)[None]), weight=0,
    )  # fmt: skip
    buffers = (Buffer(1600, Grid.FULL), Buffer(4096, Grid.FULL))
    program = Program(buffers, (Weight(64 * 144, ()),), (step,), 0)
    launch = Launch(kernel, (blocks // 6, 3, 2), threads, 0, step, 3)
    return Chunk(program, 32, 2, 3, 2, 64 * 144, 0, False, (launch,)), launch


def test_a_convolution_counts_its_products_and_each_number_once():
    chunk, launch = convolution(TILE, 96)
    work = model.work_of(chunk, launch, "fp32")
    cells, results = 6, 64 * 64 * 32
    assert work.flops == work.flops_done == 2 * cells * results * 144
    read, written, weights = work.touches
    assert read == Touch(("buffer", 0), 4 * cells * 1600 * 32, False)
    assert written == Touch(("buffer", 1), 4 * cells * results, True)
    assert weights == Touch(("weight", 0), 4 * 3 * 64 * 144, False)
    # 4 neighbouring positions in a block: 6 columns of 3 rows in place of 4 x 9
    fetched = 144 * (128 * 18 / 36 + 64) * 4
    assert work.loads == pytest.approx(96 * fetched + written.bytes)


def test_a_tile_that_is_not_filled_costs_what_a_full_one_costs():
    chunk, launch = convolution("contract_tile_kernel<Tile<64, 128, 2>, 1>", 96)
    step = dataclasses.replace(launch.step, channels=launch.step.channels[:, :40])
    launch = dataclasses.replace(launch, step=step)
    work = model.work_of(chunk, launch, "fp32")
    assert work.flops_done == work.flops * 64 / 40


@pytest.mark.parametrize(
    ("kernel", "threads", "rows", "columns"),
    [
        (TILE, 128, 64, 128),
        ("contract_strip_kernel<Strip<8, 2>>", 128, 8, 1024),
        ("contract_strip_kernel<Strip<16, 1>>", 128, 16, 512),
        (MMA, 256, 128, 128),
        ("contract_mma_kernel<3, Shape<1, 1, 8>>", 256, 16, 256),
        ("contract_general_kernel", 256, 8, 1024),
    ],
)
def test_the_name_of_a_kernel_says_its_tile(kernel, threads, rows, columns):
    _, launch = convolution(kernel, 6, threads)
    assert model.tile_of(launch, 64, 64 * 32) == (rows, columns)


def code(loop: Loop, registers: int = 128) -> Code:
    return Code(cuda_compiler.Usage(TILE, "sm_90", registers, 0, 0), (loop,))


FULL = Loop(all=640, fma=512, mma=0, mma_macs=0, bytes=0, fetched=0, seldom=0, seldom_bytes=0)


def estimate(
    loop: Loop, blocks: int = 132 * 48, math_of: str = "fp32", kernel: str = TILE, times: int = 1
) -> float:
    """Of arithmetic alone, as a part of the peak."""
    chunk, launch = convolution(kernel, blocks)
    taps = np.concatenate([launch.step.taps] * times)
    launch = dataclasses.replace(launch, step=dataclasses.replace(launch.step, taps=taps))
    work = model.work_of(chunk, launch, math_of)
    work = dataclasses.replace(work, loads=0.0, touches=())
    time = model.time_of(H100, launch, work, 0.0, code(loop))
    return work.flops_done / time.estimate / H100.flops[work.math]


def test_multiply_adds_share_issue_slots_with_the_other_instructions():
    assert estimate(FULL) == pytest.approx(512 / 640, rel=1e-3)


def test_what_a_loop_moves_may_take_longer_than_its_instructions():
    assert estimate(dataclasses.replace(FULL, bytes=256 * 128)) == pytest.approx(0.5, rel=1e-3)


def test_long_sums_are_put_away_once_in_a_stretch():
    loop = dataclasses.replace(FULL, seldom=1280)
    assert estimate(loop) == pytest.approx(estimate(FULL))
    # 8 of 128 taps in a round
    assert estimate(loop, times=2) == pytest.approx(512 / (640 + 1280 / 16), rel=1e-3)


def test_few_blocks_leave_multiprocessors_without_work():
    full, half = estimate(FULL, 132 * 48), estimate(FULL, 66)
    assert half == pytest.approx(full / 2)
    assert estimate(FULL, 138) == pytest.approx(full * 138 / 264)


def test_loads_that_no_other_warp_hides_take_time():
    waiting = dataclasses.replace(FULL, fetched=512)
    # one block of four warps: one warp for each scheduler, which waits by itself
    assert estimate(waiting, 132) == pytest.approx(estimate(FULL, 132) * 640 / (640 + H100.latency))
    assert estimate(waiting) == pytest.approx(estimate(FULL))


def test_three_products_make_one_in_bf16x3():
    loop = Loop(all=0, fma=0, mma=48, mma_macs=2048, bytes=0, fetched=0, seldom=0, seldom_bytes=0)
    loop = dataclasses.replace(loop, all=1)
    one = estimate(loop, math_of="bf16", kernel=MMA)
    assert one == pytest.approx(H100.tensor_share, rel=1e-2)
    assert estimate(loop, math_of="bf16x3", kernel=MMA) == pytest.approx(one)


def test_no_estimate_is_below_its_floor():
    chunk, launch = convolution(TILE, 96)
    work = model.work_of(chunk, launch, "fp32")
    fast = dataclasses.replace(FULL, all=1, fma=1 << 20)
    for loads, moved in ((0.0, 0.0), (1e9, 0.0), (0.0, 1e9)):
        given = dataclasses.replace(work, loads=loads)
        time = model.time_of(H100, launch, given, moved, code(fast))
        assert time.estimate >= time.floor > 0


LISTING = """
.text._Z1kv:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0020*/               @P0 BRA `(.L_x_2) ;
{sums}
        /*0030*/                   STS.128 [R0], R4 ;
.L_x_2:
        /*0038*/               @P2 BRA `(.L_x_5) ;
        /*003c*/                   FADD R6, R6, R7 ;
.L_x_5:
        /*0040*/                   LDS.64 R8, [R0] ;
        /*0050*/                   FFMA R9, R8, R4, R9 ;
        /*0060*/                   LDSM.16.M88.4 R12, [R0] ;
        /*0070*/              @!P1 BRA `(.L_x_1) ;
        /*0080*/                   EXIT ;
.text._Z1jv:
.L_x_0:
        /*0000*/                   FFMA R9, R8, R4, R9 ;
.L_x_3:
        /*0000*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0010*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0020*/               @P1 BRA `(.L_x_3) ;
        /*0028*/               @P2 BRA `(.L_x_0) ;
.L_x_4:
        /*0030*/                   IADD3 R4, R4, 0x1, RZ ;
        /*0040*/               @P1 BRA `(.L_x_4) ;
"""


def test_loops_are_read_from_the_listing():
    sums = "\n".join(["        /*0024*/                   FADD R4, R4, R5 ;"] * 40)
    loops = roofline_code.loops_of(LISTING.format(sums=sums))
    assert loops == {
        "k": [Loop(8, 1, 0, 0, 32 * (16 + 8 + 16), 512, 41, 32 * 16)],
        "j": [Loop(3, 0, 2, 2048, 0, 0, 0, 0)],
    }


SAID = """
ptxas info    : Compiling entry function '_ZN1a1kILi2ELb1EEEvv' for 'sm_80'
ptxas info    : Function properties for _ZN1a1kILi2ELb1EEEvv
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 32 bytes cumulative stack size, 2048 bytes smem
ptxas info    : Function properties for _ZN1a4helpEv
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_ZN1a1kILi2ELb1EEEvv' for 'sm_90'
ptxas info    : Function properties for _ZN1a1kILi2ELb1EEEvv
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Function properties for _ZN1a4helpEv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers
"""


def test_registers_are_read_from_what_ptxas_says():
    assert list(cuda_compiler.usage(SAID)) == [
        cuda_compiler.Usage("k<2, 1>", "sm_80", 40, 32, 2048),
        cuda_compiler.Usage("k<2, 1>", "sm_90", 32, 16, 0),
    ]


def test_every_architecture_is_compiled_from_what_the_package_ships():
    options = cuda_compiler.targets([75, 86, 87, 89, 120, 121], [75, 80, 86, 89, 90, 120])
    assert options[1::2] == [
        "arch=compute_75,code=[sm_75]",
        "arch=compute_86,code=[sm_86,sm_87]",
        "arch=compute_89,code=[sm_89]",
        "arch=compute_120,code=[sm_120,sm_121,compute_120]",
    ]
    assert cuda_compiler.shipped()[:2] == [75, 80]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_what_the_driver_launches_does_all_products_of_a_model():
    about = roofline.device_of(H100)
    workload = roofline.workloads.make("W1", "quick")
    chunk = roofline.chunk_of(workload, 60_000, "fp32", about)
    found = sum(
        model.work_of(chunk, launch, "fp32").flops
        for launch in chunk.launches
        if "contract" in launch.kernel
    )
    samples = chunk.tiles * chunk.lanes
    shared, own = 3 * 784 * 512, chunk.points * (512 * 512 + 512 * 10)
    assert found == 2 * samples * (shared + own)
