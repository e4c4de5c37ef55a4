"""Options and fixtures that every test file may use."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import gpu
import numpy as np
import pytest
import real_data
import torch
from hypothesis import is_hypothesis_test, settings
from torch import Tensor

# Reason -> what to do about it; printed once however many tests were skipped.
NEEDS = {
    "needs the folder of real data": "give one with --data DIR",
    "needs Fashion-MNIST": "run `make data`",
    "needs pyevtk": "install the extra paraview",
    "needs VTK": "`make check` installs it",
    "needs Chromium": "`make check` fetches it where there is apt; or install chromium",
    "needs a CUDA device": "they run on a machine with a GPU, `pytest -m gpu` selects them",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--data",
        type=Path,
        default=real_data.CIFAR_FOLDER,
        metavar="DIR",
        help="folder of real data (CIFAR-10 as JPEG, ...); tests that need it skip without it",
    )
    parser.addoption(
        "--examples",
        type=int,
        default=1,
        metavar="N",
        help="draw N times as many examples for every property",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "property: holds for all inputs, tried on drawn ones")
    # Sums in torch depend on the number of threads; and test processes share the cores.
    torch.set_num_threads(1)
    # A shell that starts pytest in the background has it ignore Ctrl-C, which tests send.
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if {"data_dir", "fashion_mnist"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("data")
    properties = [i for i in items if is_hypothesis_test(getattr(i, "obj", None))]
    for item in properties:
        item.add_marker("property")
    if (times := config.getoption("--examples")) != 1:
        _draw_more(properties, times)


def _draw_more(properties: list[pytest.Item], times: int) -> None:
    """Many examples of every property, in proportion: a profile gives way to ``@settings``."""
    for function in {item.obj for item in properties}:
        usual = function._hypothesis_internal_use_settings  # there is no public way to it
        function._hypothesis_internal_use_settings = settings(
            usual, max_examples=times * usual.max_examples
        )


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and (why := gpu.missing()) is not None:
        pytest.skip(why)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        counts.update(need for need in NEEDS if need in reason)
    for need, count in counts.items():
        terminalreporter.write_line(f"{count} skipped: {need} ({NEEDS[need]})")


@pytest.fixture(autouse=True)
def _generators_start_alike() -> None:
    """No test depends on the random numbers that an earlier one drew."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (the global generator is the point)
    torch.manual_seed(0)


@pytest.fixture
def generators_untouched() -> Iterator[None]:
    """Fail if the test moves a global generator of Python, NumPy or torch."""
    before = _generator_states()
    yield
    after = _generator_states()
    moved = [name for name in before if before[name] != after[name]]
    assert not moved, f"global generators moved: {moved}"


def _generator_states() -> dict[str, object]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "random": random.getstate(),
        "numpy": (kind, keys.tobytes(), *rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


@pytest.fixture(params=["cpu", gpu.CUDA])
def device(request: pytest.FixtureRequest) -> str:
    """Every test that asks for a device runs on each of them."""
    return request.param


@pytest.fixture(scope="session")
def data_dir(pytestconfig: pytest.Config) -> Path:
    """The folder of real data."""
    folder: Path = pytestconfig.getoption("--data")
    if not folder.is_dir():
        pytest.skip("needs the folder of real data")
    return folder


@pytest.fixture(scope="session")
def cifar10_test(data_dir: Path) -> tuple[Tensor, Tensor]:
    """100 test images of each CIFAR-10 class, and their labels."""
    found = real_data.cifar10_test(data_dir)
    if found is None:
        pytest.skip("needs the folder of real data")
    return found


@pytest.fixture(scope="session")
def fashion_mnist() -> Callable[[str, int], tuple[Tensor, Tensor]]:
    """`fashion_mnist("t10k", n)`: the first n images (n, 1, 28, 28) float32 in [0, 1], labels."""

    def load(part: str, count: int) -> tuple[Tensor, Tensor]:
        found = real_data.fashion_mnist(part, count)
        if found is None:
            pytest.skip("needs Fashion-MNIST")
        return found

    return load
