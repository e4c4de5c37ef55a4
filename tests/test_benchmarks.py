"""The benchmarks: every contender computes the same, and the page says what was measured."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import baselines
import contenders
import figure
import gpu_contenders
import machine
import report
import timing
import workloads
from timing import Timed

import landscapex as lx

ROOT = Path(__file__).parents[1]
OTHERS = {"loss-landscapes", "landscaper"}  # not installed everywhere


@pytest.mark.parametrize(
    "name",
    [
        *(n for n in workloads.NAMES if n not in ("W3", "W4")),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("W3", "W4")),
    ],
)
def test_every_contender_computes_the_plane_of_the_reference(name, pytestconfig):
    workload = workloads.make(name, "quick", pytestconfig.getoption("--data"))
    names = [n for n in contenders.CONTENDERS if n != "torch.compile"]
    ready, skipped = contenders.prepare(workload, names)
    expected = {"W1": set(), "W2": {"PyTorch in place, oneDNN"}, "W3": {"PyTorch in place, oneDNN"}}
    slow = {"vmap over 8 points", "PyTorch in place, oneDNN"}
    assert set(skipped) - OTHERS == expected.get(name, slow)
    for contender_name, contender in ready.items():
        found, _ = contenders.prove_equal(workload, contender_name, contender)
        limit = contenders.ROUNDED if "bf16" in contender_name else timing.CLOSE
        assert contender.close == limit
        assert found.unexplained < limit


@pytest.mark.slow
@pytest.mark.parametrize("name", ["W1", "W6"])
def test_torch_compile_computes_the_plane_of_the_reference(name):
    workload = workloads.make(name, "quick")
    ready, skipped = contenders.prepare(workload, ["torch.compile"])
    if skipped:
        pytest.skip(skipped["torch.compile"])
    contenders.prove_equal(workload, "torch.compile", ready["torch.compile"])


def test_contenders_for_a_gpu_compute_the_plane_of_the_reference(device):
    """Data several times over have the mean of the data."""
    workload = workloads.make("W1", "quick")
    case = gpu_contenders.on_device(workload, torch.device(device), 2)
    assert len(case.there.labels) == 2 * len(workload.labels)
    ready, skipped = gpu_contenders.prepare(case)
    expected = {"landscapex, tf32", "landscapex, bf16x3"} if device == "cpu" else set()
    assert set(skipped) >= expected | {"PyTorch in place, bf16x3"}
    assert {"landscapex", "landscapex, bf16", "PyTorch in place, tf32"} <= ready.keys()
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for contender_name, contender in ready.items():
        found, timed = contenders.prove_equal(workload, contender_name, contender)
        assert found.unexplained < contender.close
        assert 0 < timed.device < 60
        assert timed.cpu == 0
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    assert contenders.prove_equal(workload, "x", ready["landscapex"])[0].unexplained < 1e-5


def test_why_the_compiled_engine_is_not_used_is_told(monkeypatch):
    def refuse(*args, engine, **options):
        if engine == "compiled":
            raise lx.errors.CaptureError("`engine` must have a model, got: it has no graph.")
        return taken(*args, engine=engine, **options)

    taken = lx.surface
    workload = workloads.make.__wrapped__("W6", "quick")
    monkeypatch.setattr(contenders.lx, "surface", refuse)
    made = contenders.ours(workload)
    assert made.run.engine == "eager"
    assert made.about() == "eager engine: it has no graph"
    assert contenders.prove_equal(workload, "landscapex", made)[0].unexplained < timing.CLOSE


def test_a_compiler_that_is_missing_is_told_and_nothing_raised(monkeypatch):
    def broken(model):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(baselines, "summed_compiled", lambda model: lambda x, y: broken(model))
    workload = workloads.make("W1", "quick")
    _, skipped = contenders.prepare(workload, ["torch.compile"])
    assert skipped == {"torch.compile": "RuntimeError: no C++ compiler"}


def test_one_point_that_is_off_is_found():
    workload = workloads.make("W1", "quick")
    plane = workload.square()
    losses = workload.exact(plane).copy()
    losses[1, 2] *= 1 + 2 * timing.CLOSE
    wrong = contenders.Contender(plane, lambda: Timed(losses, 9, 1.0, 1.0, 1.0))
    with pytest.raises(AssertionError, match="PyTorch in place computes another surface"):
        contenders.prove_equal(workload, "PyTorch in place", wrong)
    losses[1, 2] = np.nan
    with pytest.raises(AssertionError, match="computes another surface"):
        contenders.prove_equal(workload, "PyTorch in place", wrong)


def test_a_long_row_is_compared_at_the_same_points():
    workload = workloads.make("W1", "quick")
    plane, every = workload.rectangle((2, 51)).thinned()
    assert (every, len(plane.beta)) == (11, 5)
    np.testing.assert_array_equal(plane.beta, workload.rectangle((2, 51)).beta[::11])


def test_only_the_known_defects_of_other_tools_are_explained():
    exact = np.arange(1.0, 10.0).reshape(3, 3)
    before = exact - 0.5
    shifted = exact.copy()
    shifted[1] = before[1]
    found = timing.difference("loss-landscapes", shifted, exact, before)
    assert found == timing.Difference(0.5 / 4, 0.0)
    assert timing.difference("PyTorch in place", shifted, exact).unexplained == 0.5 / 4

    noisy = exact.copy()
    noisy[2, 2] += 1
    assert timing.difference("landscaper", noisy, exact) == timing.Difference(10 / 9 - 1, 0.0)
    noisy[0, 0] = 2
    assert timing.difference("landscaper", noisy, exact).unexplained == 1.0


def test_another_contender_begins_each_round():
    order = []

    def note(name):
        return lambda: order.append(name) or Timed(np.zeros(1), 1, 1.0, 1.0, 1.0)

    turns = timing.in_turn({name: note(name) for name in "abc"})
    rounds = [next(turns) for _ in range(4)]
    assert "".join(order) == "abc" + "bca" + "cab" + "abc"
    assert [list(r) for r in rounds] == [list("abc")] * 4


def test_ratios_are_those_of_the_same_round_and_of_a_point():
    ours = [(10, 1.0), (10, 2.0), (10, 4.0)]
    other = [(5, 1.0), (5, 2.0), (5, 6.0)]  # half as many points
    rounds = [
        {
            name: Timed(np.zeros(1), points, seconds, 2 * seconds, 0.0)
            for name, (points, seconds) in (("ours", mine), ("other", theirs))
        }
        for mine, theirs in zip(ours, other, strict=True)
    ]
    made = timing.summary(rounds, "ours")
    assert made["ours"]["cpu ms"] == 200
    assert made["ours"]["wall ms"] == 400
    assert (made["other"]["cpu ms"], made["other"]["points"]) == (400, 5)
    ratios = [made["other"][f"cpu ratio{k}"] for k in ("", " min", " max")]
    assert ratios == [2.0, 2.0, 3.0]


@pytest.mark.parametrize("reports", [[3, 6, 10], [10]], ids=["several reports", "one report"])
def test_what_a_call_does_once_is_not_counted_per_point(monkeypatch, reports):
    """A clock that a call moves by 7 s once and by 2 s (1 s of CPU time per thread) per point."""
    now = SimpleNamespace(wall=100.0, cpu=50.0)
    clock = SimpleNamespace(process_time=lambda: now.cpu, perf_counter=lambda: now.wall)

    def surface(objective, *, points, callback, **options):
        now.wall, now.cpu = now.wall + 7, now.cpu + 9
        size, done = points[0] * points[1], 0
        for part in reports if size == 10 else [size]:
            now.wall, now.cpu = now.wall + 2 * (part - done), now.cpu + 4 * (part - done)
            done = part
            callback(SimpleNamespace(done=done))
        return SimpleNamespace(loss=np.zeros(points), provenance={"engine": {"name": "test"}})

    workload = workloads.make("W1", "quick")
    made = contenders.Landscapex(workload, workload.rectangle((2, 5)), engine="auto")
    monkeypatch.setattr(contenders, "time", clock)
    monkeypatch.setattr(contenders.lx, "surface", surface)
    timed = made()
    assert timed.wall / timed.points == pytest.approx(2)
    assert timed.cpu / timed.points == pytest.approx(4)
    assert timed.call == pytest.approx(7 + 10 * 2)
    assert timing.once(timed, 2.0) == pytest.approx(7)
    assert timing.once(timed, 3.0) == 0
    assert made.used == "test"


def test_the_fastest_setting_is_chosen_by_cpu_time():
    def busy(seconds):
        def loss():
            end = time.process_time() + seconds
            while time.process_time() < end:
                pass

        return SimpleNamespace(loss=loss)

    assert baselines.fastest([busy(0.02), busy(0.001), busy(0.02)]) == 1


def test_images_are_tried_in_both_layouts_and_sequences_are_not():
    images = list(baselines.candidates(workloads.make("W2", "quick")))
    assert [s.batch for s in images] == [16, 16, 64, 64, 96, 96]
    assert {s.layout for s in images} == {torch.contiguous_format, torch.channels_last}
    assert [str(s) for s in images[-2:]] == ["batches of 96", "batches of 96, channels last"]
    sequences = list(baselines.candidates(workloads.make("W6", "quick")))
    assert [(s.batch, s.layout) for s in sequences] == [
        (16, torch.contiguous_format),
        (24, torch.contiguous_format),
    ]


def test_a_workload_leaves_the_global_generators_alone(generators_untouched):
    workloads.make.__wrapped__("W4", "quick")


def test_what_a_call_does_once_is_measured_in_a_process_of_its_own():
    """`make bench` keeps the folder of a script off the path."""
    script = ROOT / "benchmarks" / "first_point.py"
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    command = [sys.executable, str(script), "eager", "3"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    assert found["engine"] == "eager"
    assert 0 < found["per point"] < 1
    assert 0 <= found["warm"] < 10


def test_the_machine_is_described_without_names_of_hosts_or_folders():
    facts = machine.describe()
    assert {"processor", "cores", "torch"} <= facts.keys()
    assert all(facts.values())
    text = " ".join(facts.values())
    for private in (platform.node(), str(Path.home()), str(ROOT)):
        assert len(private) < 3 or private not in text


def row(cpu: float, wall: float, **more) -> dict:
    """A contender's times where landscapex takes 10 ms of CPU time and 5 ms on the wall."""
    made = {"cpu ms": cpu, "wall ms": wall, "cpu ratio": cpu / 10, "wall ratio": wall / 5}
    made |= {"cpu ratio min": cpu / 11, "cpu ratio max": cpu / 9}
    return {**made, "difference": 3e-7, "points": 9, "about": "batches of 64", **more}


def extra(threads: int) -> dict:
    return {
        "workload": "W1",
        "title": "MLP",
        "data": "random weights, 10 samples",
        "threads": threads,
        "machine": {"processor": "abacus"},
        "skipped": {"landscaper": "not installed"},
        "contenders": {
            "landscapex": row(10, 5, **{"once seconds": 0.1}),
            "landscapex, bf16": row(5, 2.5, **{"once seconds": 0.1}),
            "loss-landscape style": row(70.0 * threads, 35),
            "PyTorch in place": row(40, 20),
            "PyTorch in place, oneDNN": row(30, 15),
        },
    }


@pytest.fixture
def results(tmp_path) -> report.Results:
    first = {
        "auto": {"cold": 3.001, "warm": 0.5, "per point": 0.001, "engine": "compiled"},
        "eager": {"cold": 0.2, "warm": 0.2, "per point": 0.003, "engine": "eager"},
    }
    extras = [extra(1), extra(2), {"first_point": first}, {"other": "benchmark"}]
    path = tmp_path / "benchmarks.json"
    path.write_text(
        json.dumps(
            {"datetime": "2026-01-02T03:04", "benchmarks": [{"extra_info": e} for e in extras]}
        )
    )
    return report.read(path)


def test_the_page_has_times_ratios_and_what_did_not_run(results):
    page = report.markdown(results, "results.png")
    assert "| processor | abacus |" in page
    assert (
        "| W1 | loss-landscape style | 70 | 35 | 7.00 (6.36-7.78) | 7.00 | 3e-07 "
        "| batches of 64, 9 points |" in page
    )
    assert "| W1 | landscaper | - | - | - | - | - | not run: not installed |" in page
    assert "![How many times as long as landscapex](results.png)" in page
    assert page.index("## One thread") < page.index("## 2 threads") < page.index("## Targets")


def test_measured_ratios_stand_beside_the_targets(results):
    lines = report.targets(results.of(1)).splitlines()
    assert "| W1 | landscapex | loss-landscape style | 6.5 | 8.5 | 7.00 | reached |" in lines
    assert "| W1 | landscapex | PyTorch in place | 4.8 | 6.2 | 4.00 | missed |" in lines
    assert "| W1 | landscapex | PyTorch in place, oneDNN | 2.2 | 2.9 | 3.00 | aim |" in lines
    assert "| W1 | landscapex | landscaper | 4.8 | 6.3 | - | not run |" in lines
    assert "| W1 | landscapex, bf16 | loss-landscape style | 9 | 15 | 14.00 | reached |" in lines


def test_efficiency_is_cpu_time_of_one_thread_over_that_of_all(results):
    text = report.efficiency(results.of(1), results.of(2))
    assert "| W1 | loss-landscape style | 0.50 | 1.00 |" in text
    assert "| W1 | landscapex | 1.00 | 1.00 |" in text


@pytest.mark.parametrize(
    ("once", "mine", "other", "points"),
    [
        (100.0, 5.0, 20.0, "7"),  # 100 + 7 * 5 < 7 * 20, but 100 + 6 * 5 > 6 * 20
        (100.0, 5.0, 25.0, "6"),  # at 5 points they are equal
        (0.0, 5.0, 20.0, "1"),
        (100.0, 20.0, 20.0, "none"),
        (1e5, 5.0, 6.0, "100,001"),
    ],
)
def test_break_even_is_the_first_number_of_points_that_takes_less_time(once, mine, other, points):
    assert report._break_even(once, mine, other) == points


def test_break_even_on_the_page(results):
    page = report.markdown(results, "results.png")
    assert "| W1 | 100 | 5 | 20 | 7 | 13.1 | 52 |" in page
    assert "Break-even of the two, in points: 1,401 in a new process, 151 later." in page
    assert "| `engine='auto'`: compiled | 3001 | 500 | 1 |" in page


def test_without_a_gpu_the_page_says_that_nothing_was_measured_on_one(results):
    page = report.markdown(results, "results.png")
    assert "## On a GPU\n\nNot measured: there was no GPU." in page
    for name in gpu_contenders.NAMES:
        assert f"| {name} | not measured: no GPU | - | - | - | - | - |" in page


def test_times_on_a_gpu_fill_the_table(results):
    rounds = [
        {
            "landscapex": Timed(np.zeros(2), 2, 0.0, 0.4, 0.4, 0.2),
            "PyTorch in place": Timed(np.zeros(1), 1, 0.0, 0.8, 0.8, 0.7),
        }
    ]
    made = timing.summary(rounds, "landscapex", ("device", "wall"))
    for contender in made.values():
        contender.update(difference=2e-6, about="compiled engine")
    skipped = {"landscapex, tf32": "too old"}
    entry = report.GpuEntry("W3", "abacus", 9984, made, skipped)
    page = report.markdown(dataclasses.replace(results, gpu=[entry]), "results.png")
    assert "Measured on abacus." in page
    assert (
        "| W3, 9,984 samples | PyTorch in place | 700 | 800 | 7.00 (7.00-7.00) | 2e-06 "
        "| compiled engine, 1 points |" in page
    )
    assert "| W3, 9,984 samples | landscapex, tf32 | - | - | - | - | not run: too old |" in page
    assert "not measured" not in page


def test_the_bars_of_the_figure_are_the_ratios(results):
    entries = {n: results.of(n) for n in results.threads}
    ax = figure.plot(entries, "landscapex").axes[0]
    assert [t.get_text() for t in ax.get_yticklabels()] == list(entries[1]["W1"].contenders)[1:]
    widths = [bar.get_width() for bar in ax.patches]
    assert widths == pytest.approx([0.5, 7, 4, 3, 0.5, 7, 4, 3])  # CPU of one, wall of two
    first, second = (bar.get_y() for bar in (ax.patches[0], ax.patches[4]))
    assert first < second  # beside each other


def test_a_contender_that_ran_with_one_number_of_threads_has_one_bar(results):
    entry = results.of(2)["W1"]
    fewer = {n: r for n, r in entry.contenders.items() if n != "PyTorch in place"}
    entries = {1: results.of(1), 2: {"W1": dataclasses.replace(entry, contenders=fewer)}}
    assert len(figure.plot(entries, "landscapex").axes[0].patches) == 7


def test_page_and_figure_are_written(results, tmp_path):
    report.main(tmp_path / "benchmarks.json", tmp_path)
    assert (tmp_path / "RESULTS.md").read_text().startswith("# Results of the benchmarks")
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")


def test_a_file_without_workloads_is_refused(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"datetime": "2026-01-02", "benchmarks": [{"extra_info": {}}]}')
    with pytest.raises(
        ValueError, match=r"`other.json` must hold results of bench_workloads.py, got none."
    ):
        report.read(path)
