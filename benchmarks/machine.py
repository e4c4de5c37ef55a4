"""What a time depends on: processor, torch and its libraries, landscapex."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch

import landscapex as lx

# of all flags, those for which torch, MKL, oneDNN or landscapex have code of their own
_FLAGS = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "asimd", "sve", "bf16"),
)


def describe() -> dict[str, str]:
    """Facts by name, none of which names a person, a host or a folder."""
    report = lx.doctor()
    return {
        "processor": _processor(),
        "vector instructions": ", ".join(f for f in _FLAGS if f in _cpu_flags()) or "unknown",
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}, {platform.libc_ver()[0]} "
        f"{platform.libc_ver()[1]}",
        "Python": platform.python_version(),
        "torch": f"{torch.__version__} ({_libraries()})",
        "landscapex": f"{report.version}, kernels: {report.cpu_chosen or 'plain PyTorch'}"
        + (f", built with {report.built_with[0]}" if report.built_with else ""),
    }


def _cpu_info(key: str) -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    found = re.search(rf"^{key}\s*:\s*(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def _processor() -> str:
    name = _cpu_info("model name") or platform.processor() or platform.machine()
    numbers = [
        f"{what} {_cpu_info(key)}"
        for what, key in (("family", "cpu family"), ("model", "model"))
        if _cpu_info(key)
    ]
    return f"{name} ({', '.join(numbers)})" if numbers else name


def _cpu_flags() -> set[str]:
    return set((_cpu_info("flags") or _cpu_info("Features")).split())


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError):
        return "unknown"
    return f"{size / 2**30:.0f} GiB"


def _libraries() -> str:
    """BLAS, oneDNN and vector code of this torch."""
    build = torch.__config__.show()
    blas = re.search(r"BLAS_INFO=(\w+)", build)
    onednn = re.search(r"MKL-DNN v([\d.]+)", build)
    return (
        f"BLAS: {blas[1] if blas else 'unknown'}, oneDNN: {onednn[1] if onednn else 'none'}, "
        f"vector code: {torch.backends.cpu.get_cpu_capability()}"
    )
