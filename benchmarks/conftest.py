"""Settings of every benchmark."""

from __future__ import annotations

import pytest


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Record what a time depends on: torch, its threads, and what landscapex was built with."""
    import torch

    import landscapex as lx

    machine_info["torch"] = torch.__version__
    machine_info["torch_threads"] = torch.get_num_threads()
    machine_info["landscapex"] = lx.__version__
