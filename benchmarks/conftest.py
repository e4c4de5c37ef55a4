"""Settings and fixtures of every benchmark."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import real_data


def pytest_addoption(parser: pytest.Parser) -> None:
    with contextlib.suppress(ValueError):  # the tests, if both are run, have the same option
        parser.addoption(
            "--data",
            type=Path,
            default=real_data.CIFAR_FOLDER,
            metavar="DIR",
            help="folder with CIFAR-10 as JPEG; random numbers serve without",
        )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Record what a time depends on: torch, its threads, and what landscapex was built with."""
    import landscapex as lx

    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["landscapex"] = lx.__version__


@pytest.fixture
def data_folder(pytestconfig: pytest.Config) -> Path:
    return pytestconfig.getoption("--data")


@pytest.fixture(params=[pytest.param(1, id="one_thread"), pytest.param(None, id="all_threads")])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param or os.cpu_count() or 1)
    yield torch.get_num_threads()
    torch.set_num_threads(before)
