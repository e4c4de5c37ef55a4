"""R5: what torch expects of operators, for every operator that is registered, dtype and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from native.operator_cases import (
    GROUPS,
    HALF_TO_DOUBLE,
    MASTER,
    RUNS,
    bits,
    filter_case,
    orthogonalize_case,
    perturb_case,
)
from reliability.figure import Figure
from torch.utils._pytree import tree_leaves, tree_map

from landscapex import _lib, _ops

# What `torch.library.opcheck` looks at, in words.
CHECKS = {
    "test_schema": "the schema says what is written",
    "test_autograd_registration": "autograd is registered",
    "test_faketensor": "there is a fake kernel",
    "test_aot_dispatch_dynamic": "it compiles with dynamic shapes",
}
DTYPES: dict[str, tuple[torch.dtype, ...]] = {
    "perturb_": tuple(MASTER),
    "filter_normalize_": HALF_TO_DOUBLE,
    "gaussian_": tuple(MASTER),
    "orthogonalize_": tuple(MASTER),
}


def registered(namespace: str = "landscapex") -> set[str]:
    """The operators of a namespace: what takes tensors; not its settings and what it tells."""
    names = [n for n in torch._C._dispatch_get_all_op_names() if n.startswith(f"{namespace}::")]
    schemas = {n.split("::")[1]: str(operator(n.split("::")[1], namespace)._schema) for n in names}
    return {name for name, schema in schemas.items() if "Tensor" in schema}


def operator(name: str, namespace: str = "landscapex") -> Any:
    """As torch calls it."""
    return getattr(getattr(torch.ops, namespace), name).default


def arguments(name: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Any, ...]:
    """Of an operator, in the order of its schema; tables stay on the CPU."""
    if name == "perturb_":
        params, center, directions, coordinates = perturb_case(2, 2, dtype, long=50)
        # what is compared with itself holds no NaN
        center, directions = (t.nan_to_num(posinf=1, neginf=1) for t in (center, directions))
        return moved((params, center, directions, coordinates), device)
    if name == "filter_normalize_":
        directions, center, norms = filter_case(2, 2, dtype)
        directions, center, norms = moved((directions, center, norms), device)
        return directions, center, RUNS, GROUPS, norms, False
    if name == "orthogonalize_":
        return moved(orthogonalize_case(3, 50, dtype), device)
    return torch.empty(9, dtype=dtype, device=device), 1, 2, 3


def moved(values: Any, device: str) -> Any:
    """The same with its tensors on a device."""
    return tree_map(lambda t: t.to(device) if isinstance(t, torch.Tensor) else t, values)


def opcheck(name: str, dtype: torch.dtype, device: str = "cpu") -> dict[str, str]:
    """What each of `CHECKS` says: "SUCCESS", or the error."""
    found = torch.library.opcheck(
        operator(name), arguments(name, dtype, device), raise_exception=False
    )
    return {check: str(said) for check, said in found.items()}


def written(values: Any) -> list[list[int]]:
    """The bits of all tensors among arguments; tables of whole numbers are read only."""
    tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
    return [bits(t.cpu()) for t in tensors if t.is_floating_point()]


def compiles(name: str, dtype: torch.dtype, device: str = "cpu", backend: str = "eager") -> bool:
    """Whether `torch.compile(fullgraph=True)` of a function around it writes the same bits.

    The typed function of `_ops` is called, as the package does.
    """
    typed: Callable[..., None] = getattr(_ops, name)

    def step(values: tuple[Any, ...]) -> torch.Tensor:
        if name == "filter_normalize_":
            typed(*values[:-1], elementwise=values[-1])
        else:
            typed(*values)
        # something that torch itself compiles, with what was just written
        return tree_leaves(values)[0] * 2

    torch._dynamo.reset()
    plain, compiled = arguments(name, dtype, device), arguments(name, dtype, device)
    untouched = written(plain)
    expected = step(plain)
    result = torch.compile(step, fullgraph=True, backend=backend)(compiled)
    same = written((compiled, result)) == written((plain, expected))
    return same and written(plain) != untouched


def load_emulated() -> bool:
    """Register the CUDA kernels that run on the CPU; whether there are any."""
    spec = find_spec("landscapex._C_emulated")
    if spec is None or spec.origin is None:
        return False
    torch.ops.load_library(spec.origin)
    return True


def emulated_agrees(name: str, dtype: torch.dtype) -> bool:
    """Whether the CUDA kernel, emulated, keeps to the schema and writes the bits of the CPU."""
    kernel, cpu = operator(name, "landscapex_emulated"), arguments(name, dtype)
    torch.library.opcheck(kernel, arguments(name, dtype), test_utils="test_schema")
    device = arguments(name, dtype)
    operator(name)(*cpu)
    kernel(*device)
    return written(device) == written(cpu)


def measure(share: float) -> Iterator[Figure]:
    """The figures of all operators that are registered.

    Args:
        share: Does not matter: there are few of them.

    Yields:
        One for what is registered; for each device the checks of torch, and compilation.
    """
    if not _lib.native:
        yield Figure("operators", "-", f"not built: {_lib.missing}", False)
        return
    found = registered()
    forgotten, gone = sorted(found - DTYPES.keys()), sorted(DTYPES.keys() - found)
    yield Figure(
        "operators that are registered",
        f"{len(found)} operators",
        f"{_listed(forgotten, 'without checks')}; {_listed(gone, 'missing')}",
        bool(found) and not forgotten and not gone,
    )
    cases = [(name, dtype) for name, dtypes in DTYPES.items() for dtype in dtypes if name in found]
    for device in ["cpu", *(["cuda"] if _lib.cuda and torch.cuda.is_available() else [])]:
        yield _checked(cases, device)
        for backend in ("aot_eager", "inductor"):
            yield _compiled(cases, device, backend)
    yield _emulated(cases)


Cases = list[tuple[str, torch.dtype]]


def _wrong(cases: Cases, check: Callable[[str, torch.dtype], bool]) -> list[str]:
    """The cases that a check refuses, or cannot even be asked of."""
    wrong = []
    for name, dtype in cases:
        try:
            well = check(name, dtype)
            why = ""
        except Exception as error:
            well, why = False, f": {type(error).__name__}"
        if not well:
            wrong.append(f"{name} {dtype}{why}")
    return wrong


def _listed(cases: list[str], what: str) -> str:
    return f"{len(cases)} {what}" + "".join(f", {case}" for case in cases)


def _checked(cases: Cases, device: str) -> Figure:
    said = {(case, check): result for case in cases for check, result in
            opcheck(*case, device).items()}  # fmt: skip
    wrong = [f"{case[0]} {case[1]} {check}" for (case, check), r in said.items() if r != "SUCCESS"]
    complete = {check for _, check in said} == CHECKS.keys()
    return Figure(
        f"`torch.library.opcheck`, {device}",
        f"{len(cases)} operators and dtypes, {len(said)} checks",
        _listed(wrong, "wrong"),
        complete and not wrong,
    )


def _compiled(cases: Cases, device: str, backend: str) -> Figure:
    wrong = _wrong(cases, lambda name, dtype: compiles(name, dtype, device, backend))
    return Figure(
        f"`torch.compile(fullgraph=True)` with {backend}, {device}",
        f"{len(cases)} operators and dtypes",
        f"{_listed(wrong, 'wrong')}; else the bits without it",
        not wrong,
    )


def _emulated(cases: Cases) -> Figure:
    what = "CUDA kernels, emulated: what the schema says is written"
    if not load_emulated():
        return Figure(what, "-", "the emulation was not built", False)
    missing = sorted(DTYPES.keys() - registered("landscapex_emulated"))
    there = [case for case in cases if case[0] not in missing]
    wrong = [*missing, *_wrong(there, emulated_agrees)]
    count = f"{len(there)} operators and dtypes"
    return Figure(what, count, f"{_listed(wrong, 'wrong')}; else the bits of the CPU", not wrong)
