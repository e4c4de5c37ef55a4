"""The rules of CONTRIBUTING.md that a compiler does not check."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import landscapex as lx

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "landscapex"
MODULES = sorted(PACKAGE.rglob("*.py"))


def of(package: str, names: str) -> list[str]:
    return [f"{package}.{name}" if package else name for name in names.split()]


# Empty but for a line on what is in them.
PACKAGES = of("", "model losses storage grids trajectories studies")
# A module may import from those before it and from no other.
ORDER = [
    *PACKAGES,
    *of("", "errors _names _warnings _progress_bar _lib _fallback _ops"),
    *of("storage", "files checkpoints tensor_file"),
    *of("", "_draws"),
    *of("model", "entries selection parameters states drawn"),
    *of("", "_directions axes"),
    *of("grids", "grid"),
    *of("", "_batch"),
    *of("losses", "identity"),
    *of("", "_loaders batches"),
    *of("losses", "reductions metrics totals measure weighting torch_measure own_measures binding"),
    *of("", "interrupts"),
    *of("model", "generators guard determinism"),
    *of("", "engine"),
    *of(
        "engine",
        "onednn memory batch_norm layout precision eager steps program weight_order plan sharing "
        "capture",
    ),
    *of("engine", "lowering"),
    *of("engine.lowering", "samples lanes registry builder walk values contractions moves"),
    *of("engine.lowering", "convolutions lookups norms pointwise losses reductions pools"),
    *of("engine.lowering", "attention recurrent accesses editor fusion relocation storage"),
    *of("engine.lowering", "winograd optimize lower"),
    *of("engine", "native packing backend host cuda_graph device captured compiled preparation"),
    *of("engine", "validation graphs choice"),
    *of("", "session objective _arrays"),
    *of("storage", "lock"),
    *of("", "_numbers"),
    *of("studies", "segment"),
    *of("", "curvature"),
    *of("curvature", "linear draws basis krylov estimates eigenpairs lanczos quadrature density"),
    *of("curvature", "sketch trace diagonal replacements soundness outputs standing linearized"),
    *of("curvature", "products classes operators"),
    *of("sharpness", "outcome layers probe posterior noise box ascent flatness fisher"),
    *of("", "sharpness"),
    *of("criticality", "inputs points history flow"),
    *of("", "criticality"),
    *of("trajectories", "callbacks runs recorder principal trajectory plane"),
    *of("studies", "residuals coststrip"),
    *of("", "projections"),
    *of("studies", "histograms"),
    *of("", "controls"),
    *of("storage", "header journal_lines journal parts store"),
    *of("grids", "line_measures"),
    *of("storage", "dataset"),
    *of("grids", "results"),
    *of("storage", "opening"),
    *of("grids", "ranks time_limit options earlier quantities provenance filling evaluate"),
    *of("studies", "interpolation"),
    *of("curvature", "maps"),
    *of("", "explanation _pictures"),
    *of("_pictures", "scale ticks panel level_labels contours curves relief layout gallery"),
    *of("_pictures", "curvature_map spectrum trajectory interpolation residual coststrip"),
    *of("_pictures", "histograms eigenvalues flow gradients files"),
    *of("", "plot _extras"),
    *of("export", "target hdf5_reader hdf5 page paraview picture table"),
    *of("export", "reference reference_directions formats"),
    *of("", "export examples _doctor cli __main__"),
]
# Inside their methods, results may draw themselves and be exported.
DRAWN = [
    *of("trajectories", "trajectory"),
    *of("studies", "residuals coststrip histograms"),
    *of("curvature", "density eigenpairs"),
    *of("criticality", "flow history"),
]
LATER_ON_CALL = {
    **{name: {"plot"} for name in DRAWN},
    "grids.results": {"plot", "export"},
    "axes": {"curvature.operators"},  # eigenvectors as directions
}
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}


def name_of(path: Path) -> str:
    """landscapex/engine/eager.py -> "engine.eager"; a package is named like its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def resolve(name: str) -> str:
    """The module that ``landscapex.<name>`` comes from: itself, or what the lazy table says."""
    while name and name not in ORDER:
        entry = lx._TABLE.get(name)
        if entry is not None:
            return entry.partition(":")[0]
        name = name.rpartition(".")[0]
    return name


def imports(tree: ast.Module, *, called: bool) -> Iterator[str]:
    """Modules of ours that are imported at import time, or (called) inside functions."""
    for node, inside in walk(tree, inside=False):
        if inside != called:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "landscapex":
                    yield resolve(alias.name.partition(".")[2])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            package, _, tail = (node.module or "").partition(".")
            if package == "landscapex":
                for alias in node.names:
                    yield resolve(".".join(filter(None, [tail, alias.name])))


def walk(node: ast.AST, *, inside: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes but those under ``if TYPE_CHECKING``, and whether a function surrounds them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child, inside
        function = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield from walk(child, inside=inside or function)


def calls(path: Path) -> Iterator[ast.Call]:
    return (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call))


def test_imports_point_one_way():
    for path in MODULES:
        name, tree = name_of(path), ast.parse(path.read_text())
        if name == "__init__":
            assert not list(imports(tree, called=False)), "the table of contents is lazy"
            continue
        assert name in ORDER, f"{name} needs a place in ORDER"
        before = set(ORDER[: ORDER.index(name)])
        before |= {parent for parent in ORDER if name.startswith(f"{parent}.")}
        for imported in imports(tree, called=False):
            assert imported in before, f"{name} imports {imported or 'the package'}"
        if name == "cli":
            continue  # its commands import the package as a user does
        for imported in imports(tree, called=True):
            allowed = before | LATER_ON_CALL.get(name, set()) | {""}
            assert imported in allowed, f"a function of {name} imports {imported}"


def test_nothing_takes_more_than_the_version_from_the_package_itself():
    """``import landscapex`` inside a function would get around the order of imports."""
    for path in MODULES:
        if name_of(path) in ("__init__", "cli"):
            continue
        tree = ast.parse(path.read_text())
        own = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
            if alias.name == "landscapex"
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id not in own or node.attr == "__version__", path


def test_the_table_of_contents_is_complete_and_its_types_agree():
    for name in lx._TABLE:
        module, _, attribute = lx._TABLE[name].partition(":")
        expected = importlib.import_module(f"landscapex.{module}")
        expected = getattr(expected, attribute) if attribute else expected
        assert getattr(lx, name) is expected
    assert sorted(lx.__all__) == sorted([*lx._TABLE, "__version__"]) == dir(lx)
    assert re.match(r"\d", lx.__version__)
    with pytest.raises(AttributeError, match="module 'landscapex' has no attribute 'surfaces'"):
        _ = lx.surfaces

    (block,) = (n for n in ast.parse(read("__init__.py")).body if isinstance(n, ast.If))
    typed = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            module = node.module.removeprefix("landscapex").lstrip(".")
            (alias,) = node.names
            typed[alias.asname] = f"{module}:{alias.name}" if module else alias.name
    assert typed == lx._TABLE


def read(name: str) -> str:
    return (PACKAGE / name).read_text()


def test_no_public_function_shares_the_name_of_a_module():
    """``landscapex.x`` would be the module or the function, depending on what ran before."""
    modules = {name_of(path) for path in MODULES}
    for name in lx._TABLE:
        if not isinstance(getattr(lx, name), ModuleType):
            assert name not in modules


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("landscapex, landscapex.cli", ("torch", "numpy", "matplotlib", "xarray")),
        ("landscapex.plot", ("scipy", "matplotlib.pyplot")),
    ],
    ids=["package", "pictures"],
)
def test_importing_imports_nothing_heavy(modules, heavy):
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("folder", "glue"),
    [
        ("kernels", set()),
        ("program", {"bindings.cpp", "device_bindings.cpp", "description.cpp", "description.h"}),
    ],
)
def test_kernels_include_neither_torch_nor_python(folder, glue):
    """Only what binds the grid program includes pybind11, and nothing there includes torch."""
    files = (ROOT / "csrc" / folder).iterdir()
    sources = [p for p in files if p.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert glue < {p.name for p in sources}
    for path in sources:
        barred = ("torch/", "ATen/", "c10/")
        barred += () if path.name in glue else ("pybind11/", "Python.h")
        for header in re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text()):
            assert not header.startswith(barred), path


def test_trap_41_nothing_unpickles():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not FORBIDDEN & {a.name.split(".")[0] for a in node.names}, path
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in FORBIDDEN, path
        for call in calls(path):
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
            if ast.unparse(call.func) == "torch.load":
                assert keywords.get("weights_only") == "True", path
            assert keywords.get("allow_pickle", "False") == "False", path
            assert not ast.unparse(call.func).endswith(("read_pickle", "to_pickle")), path


# Where a process stands among others is told by environment variables and by nothing else.
ENVIRONMENT = {"grids.ranks": {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}}


def test_nothing_prints_or_reads_the_environment():
    for path in MODULES:
        text = path.read_text()
        assert not any(ast.unparse(call.func) == "print" for call in calls(path)), path
        assert not re.search(r"os\.(getenv|environ\[|environ\.get\((?!\"PATH\"))", text), path
        if (known := ENVIRONMENT.get(name_of(path))) is not None:
            assert set(re.findall(r"\"([A-Z_]{2,})\"", text)) == known, path
        else:  # it may be handed on to another program
            assert "os.environ" not in text.replace("{**os.environ, ", ""), path


def test_trap_42_one_top_level_package_is_installed():
    try:
        files = importlib.metadata.distribution("landscapex").files or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("landscapex is not installed, only on the path")
    top = {file.parts[0] for file in files if not file.parts[0].startswith("..")}
    top = {name for name in top if not name.endswith((".dist-info", ".pth"))}
    assert top - {"_landscapex_editable.py"} == {"landscapex"}  # the latter when editable


def test_trap_42_what_must_not_be_a_dependency_is_none():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[<>=!~;\[ ]", d)[0].lower() for d in project["dependencies"]}
    science = {"torch", "numpy", "scipy", "matplotlib", "xarray"}
    assert names == science | {"h5netcdf", "h5py", "safetensors", "tqdm", "typer"}
    never = {"torchvision", "topopy", "vtk", "mpi4py", "ray", "dask", "wandb", "hydra-core"}
    for extra in project["optional-dependencies"].values():
        assert not never & {re.split(r"[<>=!~;\[ ]", d)[0].lower() for d in extra}


def test_the_versions_of_the_tests_are_pinned_without_addresses():
    lines = (ROOT / ".ci" / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][0-9A-Za-z.]*", pin) for pin in pins)
    assert "torch==2.13.0" in pins


def test_dataclasses_cannot_be_changed():
    """But for places of a plan, which are found one after the other."""
    loose = [
        f"{name_of(path)}.{node.name}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in (said := ast.unparse(d)) and "frozen=True" not in said
                for d in node.decorator_list)
    ]  # fmt: skip
    assert {name.rpartition(".")[0] for name in loose} == {"engine.lowering.storage"}
