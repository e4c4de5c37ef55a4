"""Hessian products, Lanczos and the top five eigenvalues, beside other tools and plain PyTorch.

Every contender gets the same model and the same batches, and first proves in float64 that it
multiplies by the same matrix. They run in turn, round by round, in one process; tables are printed:

    pip install --no-deps -r .ci/oracles.txt
    python -m pytest benchmarks/bench_curvature.py --benchmark-only -k quick

``-k full`` takes 128 to 2,048 samples for products, and 1,000 images for the eigenvalues of the
ResNet-20, which takes a quarter of an hour.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import machine
import pytest
import torch
import workloads
from curvature_contenders import (
    FIVE,
    OURS,
    SEARCHES,
    Batches,
    Task,
    Watch,
    build,
    differences,
    gradient,
    prove_equal,
)
from timing import ROUNDS, Round, Timed, in_turn, summary
from torch import Tensor

import landscapex as lx
from landscapex import _lib
from landscapex.curvature.lanczos import eigenpairs
from landscapex.curvature.linear import SymmetricOperator

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import models
import other_curvature as other
import real_data

LONG = 3600  # seconds
# workload -> samples, in equal batches: hessian-eigenthings is wrong on others
SAMPLES = {"quick": {"W1": 32, "W2": 32, "W3": 16}, "full": {"W1": 2048, "W2": 1024, "W3": 128}}
BATCH = {"quick": dict.fromkeys(("W1", "W2", "W3"), 16), "full": {"W1": 128, "W2": 128, "W3": 64}}
STEPS = 20  # of Lanczos
TOLERANCE = 1e-4  # of residuals, in units of the largest eigenvalue


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_task(name: str, size: str, folder: Path) -> Task:
    workload = workloads.make(name, size, folder)
    samples, batch = SAMPLES[size][name], BATCH[size][name]
    x, y = workload.inputs[:samples], workload.labels[:samples]
    if len(y) < samples:
        x, y = (t.repeat(-(-samples // len(y)), *[1] * (t.ndim - 1))[:samples] for t in (x, y))
    return Task(workload.model, list(zip(x.split(batch), y.split(batch), strict=True)))


def timed(compute, *arguments) -> Timed:
    """One call as one point."""
    cpu, wall = time.process_time(), time.perf_counter()
    made = compute(*arguments)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Timed(made.numpy(), 1, cpu, wall, wall)


def describe(task: Task, **more: object) -> dict[str, object]:
    return {
        "samples": sum(len(y) for _, y in task.batches),
        "batches": len(task.batches),
        "parameters": task.size,
        "threads": torch.get_num_threads(),
        "kernels": _lib.native,
        "machine": machine.describe(),
        **more,
    }


@pytest.mark.timeout(LONG)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["W1", "W2", "W3"])
@pytest.mark.parametrize("size", SAMPLES)
def test_cost_of_a_product_in_gradients(benchmark, capsys, data_folder, name, size) -> None:
    task = make_task(name, size, data_folder)
    prove_equal(task)
    products, skipped = build(task)
    off = differences(task, products)
    v = task.probe()
    runs = {"gradient": lambda: timed(gradient(task))}
    runs |= {title: lambda p=p: timed(p, v) for title, p in products.items()}
    turns = in_turn(runs)
    next(turns)  # warm-up
    rounds: list[Round] = []
    benchmark.pedantic(lambda: rounds.append(next(turns)), rounds=ROUNDS)

    made = summary(rounds, "gradient")
    for title, row in made.items():
        row["difference"] = off.get(title, 0.0)
    about = describe(task, contenders=made, skipped=skipped)
    benchmark.extra_info.update(curvature="products", of=name, size=size, **about)
    with capsys.disabled():
        print(f"\n{name}, {about['samples']} samples in {about['batches']} batches, CPU time")
        for title, row in made.items():
            ratio = "{:6.2f} ({:.2f}-{:.2f})".format(
                *(row[f"cpu ratio{k}"] for k in ("", " min", " max"))
            )
            print(f"{title:32}{row['cpu ms']:10.1f} ms{ratio:>22}  {row['difference']:.0e}")
        for title, reason in skipped.items():
            print(f"{title:32} not run: {reason}")


class Watched(SymmetricOperator):
    """An operator that measures the CPU time of its products."""

    def __init__(self, operator: SymmetricOperator) -> None:
        super().__init__(self._watch, operator.size, operator.dtype)
        self.operator, self.seconds = operator, 0.0

    def _watch(self, vector: Tensor) -> Tensor:
        begin = time.process_time()
        made = self.operator.apply(vector)
        self.seconds += time.process_time() - begin
        return made


def lanczos_of_landscapex(operator: Watched) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", lx.errors.LandscapexWarning)  # it has not converged yet
        eigenpairs(operator, 5, tol=1e-12, max_products=STEPS)


def lanczos_of_eigenthings(operator: Watched) -> None:
    theirs = other.hessian_eigenthings.LambdaOperator(
        operator.apply, operator.size, dtype=operator.dtype
    )
    other.hessian_eigenthings.lanczos(theirs, k=5, max_iter=STEPS, reorthogonalize=True, seed=0)


LANCZOS = {OURS: lanczos_of_landscapex, "hessian-eigenthings": lanczos_of_eigenthings}


@pytest.mark.timeout(LONG)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["W1", "W2", "W3"])
@pytest.mark.parametrize("size", SAMPLES)
def test_lanczos_beside_its_products(benchmark, capsys, data_folder, name, size) -> None:
    """Twenty steps with full reorthogonalisation; the products are ours for both."""
    task = make_task(name, size, data_folder)
    operator = lx.hessian(task.model, task.batches, "cross_entropy")

    def measure() -> dict[str, dict[str, float]]:
        found = {}
        for title, search in LANCZOS.items():
            watched = Watched(operator)
            begin = time.process_time()
            search(watched)
            total = time.process_time() - begin
            rest = (total - watched.seconds) / watched.products
            product = watched.seconds / watched.products
            found[title] = {"ms per step": rest * 1e3, "part of a product": rest / product}
            assert watched.products == STEPS
        return found

    found = benchmark.pedantic(measure, rounds=2)
    benchmark.extra_info.update(
        curvature="lanczos", of=name, size=size, **describe(task, contenders=found)
    )
    with capsys.disabled():
        print(f"\n{name}, {STEPS} steps, P = {operator.size:,}, kernels: {_lib.native}")
        for title, row in found.items():
            print(
                f"{title:32}{row['ms per step']:8.2f} ms per step,"
                f"{row['part of a product']:8.1%} of a product"
            )


def images(count: int, folder: Path) -> Batches:
    """As many of the 1,000 CIFAR-10 test images, every class alike, in batches of at most 100."""
    found = real_data.cifar10_test(folder, count // 10)
    if found is None:
        pytest.skip("needs the folder of real data")
    x, y = found
    size = min(100, count)
    return list(zip(x.split(size), y.split(size), strict=True))


def line(row: Mapping[str, Any]) -> str:
    values = ", ".join(f"{value:.4f}" for value, _ in row["pairs"])
    residuals = ", ".join(f"{r:.0e}" for r in row["relative residuals"])
    return (
        f"{row['cpu s']:.1f} s of CPU time, {row['products']} products; values {values}; "
        f"residuals {residuals}"
    )


@pytest.mark.timeout(LONG)
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    ("count", "patience", "titles"),
    [
        pytest.param(20, 4, tuple(SEARCHES), id="quick"),
        pytest.param(100, 4, tuple(SEARCHES), id="medium"),
        pytest.param(1000, 1, tuple(SEARCHES)[:3], id="full"),  # of one tool, the better method
    ],
)
def test_top_five_eigenvalues_of_the_resnet20(
    benchmark, capsys, data_folder, count, patience, titles
) -> None:
    """Until residuals are 1e-4 of the largest, or so many times as long as landscapex takes."""
    task = Task(models.resnet20(), images(count, data_folder))

    def measure() -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for title in titles:
            ours = found.get(OURS, {"cpu s": float("inf"), "products": 0})
            watch = Watch(patience * ours["cpu s"], ours["products"])
            begin = time.process_time()
            pairs = SEARCHES[title](task, watch, TOLERANCE)
            seconds = time.process_time() - begin
            scale = max(abs(value) for value, _ in found.get(OURS, {}).get("pairs", pairs))
            found[title] = {
                "cpu s": seconds,
                "products": watch.products,
                "pairs": pairs,
                "relative residuals": [r / scale for _, r in pairs],
            }
            with capsys.disabled():
                print(f"\n{count} images, {title}: {line(found[title])}")
        return found

    found = benchmark.pedantic(measure, rounds=1)
    about = describe(task, contenders=found, patience=patience)
    benchmark.extra_info.update(curvature="eigenvalues", **about)
    assert len(found[OURS]["pairs"]) == FIVE
    assert max(found[OURS]["relative residuals"]) < TOLERANCE
