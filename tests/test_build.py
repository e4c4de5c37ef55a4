"""The build: what is compiled, what happens where it cannot be, and what `doctor` says of it."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from native.harness import COMPILER, ISAS, KERNELS, OPERATORS

from landscapex import _doctor, _lib

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
native = pytest.mark.skipif(not _lib.native, reason="the compiled libraries were not built")


# --- the sources


def test_every_operator_has_a_kernel_for_cpu_and_cuda_and_a_binding():
    listed = re.search(r"set\(LX_OPERATORS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert listed is not None
    assert tuple(listed[1].split()) == OPERATORS
    for op in OPERATORS:
        for name in (f"kernels/{op}.h", f"kernels/{op}.cpp", f"kernels/{op}.cu", f"ops/{op}.cpp"):
            assert (ROOT / "csrc" / name).is_file()


def test_every_step_of_the_grid_program_has_a_source():
    listed = re.search(r"set\(LX_STEPS ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text())
    assert listed is not None
    for step in listed[1].split():
        assert (ROOT / "csrc" / "program" / f"{step}.cpp").is_file()


def test_a_wheel_with_the_engine_is_for_one_version_of_python():
    """`_program` is an extension of one CPython: a tag py3-none would install it for others too."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert not any("py-api" in key for key in settings["tool"]["scikit-build"])
    assert "py-api" not in settings["tool"]["scikit-build"].get("wheel", {})
    assert any(name.startswith("pybind11") for name in settings["build-system"]["requires"])


@needs_compiler
@pytest.mark.parametrize("op", OPERATORS)
def test_nothing_leaks_from_one_instruction_set_into_another(op, tmp_path):
    """A weak symbol may come from any object that has it: also from the one for AVX-512."""
    isa = "avx512" if os.uname().machine == "x86_64" else "baseline"
    out = tmp_path / "out.o"
    command = [COMPILER, "-std=c++17", "-O0", *ISAS[isa], f"-DLX_ISA={isa}", "-Wno-psabi"]
    subprocess.run([*command, "-c", KERNELS / f"{op}.cpp", "-o", out], check=True)
    symbols = subprocess.run(["nm", "-C", out], check=True, capture_output=True, text=True).stdout
    weak = re.findall(r"^\S+ [VWu] (?!DW\.ref\.)(.*)$", symbols, re.MULTILINE)
    assert weak == []
    assert f"T landscapex::cpu::{isa}::" in symbols


@needs_compiler
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the emulation is for x86-64")
@pytest.mark.parametrize("op", OPERATORS)
def test_shared_arrays_are_where_the_emulation_sees_them(op, tmp_path):
    """GCC ignores the section of a static in a template: such an array would not be checked."""
    out = tmp_path / "out.o"
    command = [COMPILER, "-std=c++17", "-DLX_EMULATE_CUDA", "-Wno-unknown-pragmas"]
    command += [f"-I{ROOT / 'tests' / 'emulation'}", "-x", "c++", "-c", KERNELS / f"{op}.cu"]
    subprocess.run([*command, "-o", out], check=True)
    symbols = subprocess.run(["nm", "-C", out], check=True, capture_output=True, text=True).stdout
    assert "landscapex::cuda::" in symbols
    assert re.findall(r"^\S+ [bB] (landscapex::.*)$", symbols, re.MULTILINE) == []


@native
def test_libraries_hold_no_path_of_the_build():
    folders = [str(ROOT), str(Path(torch.__file__).parent), str(Path.home())]
    for name in ("_C_cpu", "_C_cuda", "_program"):
        spec = find_spec(f"landscapex.{name}")
        if spec is None or spec.origin is None:
            continue
        content = Path(spec.origin).read_bytes()
        assert [f for f in folders if f != "/" and f.encode() in content] == []


# --- where nothing can be compiled


@pytest.fixture
def backend(monkeypatch):
    pytest.importorskip("scikit_build_core")
    spec = spec_from_file_location("lx_backend", ROOT / "csrc" / "lx_backend.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_compiler_a_pure_wheel_is_built_and_the_log_says_why(
    backend, monkeypatch, capsys
):
    monkeypatch.setenv("CXX", "false")
    assert backend._decided({})["wheel.cmake"] == "false"
    said = capsys.readouterr().err
    assert "without compiled kernels, because false cannot compile C++17" in said
    assert "apt-get install g++" in said


@pytest.mark.parametrize(
    ("compiler", "why"),
    [("/no/such/compiler", "does not run"), ("false", "cannot compile C")],
)
def test_a_compiler_that_does_not_work_is_named(backend, monkeypatch, compiler, why):
    monkeypatch.setenv("CXX", compiler)
    assert why in backend._why_not_native()
    assert compiler in backend._why_not_native()


def test_no_compiler_at_all_is_noticed(backend, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend._why_not_native() == "no C++ compiler was found"


def test_other_platforms_get_a_pure_wheel(backend, monkeypatch):
    monkeypatch.setattr(backend.sys, "platform", "win32")
    assert backend._why_not_native() == "the platform win32 is not supported"


def fake_torch(folder: Path, version: str) -> Path:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    package = folder / "lib" / python / "site-packages" / "torch"
    package.mkdir(parents=True)
    (package / "version.py").write_text(f"__version__ = {version!r}\n")
    return package


@pytest.fixture
def hidden(backend, monkeypatch, tmp_path):
    """As in an isolated build: this interpreter's torch cannot be seen."""
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(backend.sysconfig, "get_path", lambda kind: str(tmp_path / "empty"))
    monkeypatch.setenv("PATH", str(tmp_path / "env" / "bin"), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)


def test_an_isolated_build_finds_the_torch_of_the_activated_environment(backend, hidden, tmp_path):
    package = fake_torch(tmp_path / "env", "2.13.0+cpu")
    assert backend._torch_folder() == package
    assert backend._requires(["ninja"], {}) == ["ninja"]


@needs_compiler
def test_with_a_compiler_everything_is_built_for_that_torch(backend, hidden, tmp_path, capsys):
    package = fake_torch(tmp_path / ".venv", "2.10.1")
    settings = backend._decided({"a": "b"})
    assert settings == {"a": "b", "cmake.define.LANDSCAPEX_TORCH": str(package)}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("version", [None, "2.9.1"])
def test_torch_is_a_build_requirement_where_there_is_none_new_enough(
    backend, hidden, tmp_path, version
):
    if version is not None:
        fake_torch(tmp_path / "env", version)
    assert backend._torch_folder() is None
    assert backend._requires(["ninja"], {}) == ["ninja", "torch>=2.10"]
    assert backend._requires([], {"wheel.cmake": "false"}) == []


# --- loading

PROBE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from landscapex import _lib, _ops
import torch
param = torch.zeros(2)
_ops.perturb_([param], torch.ones(2), torch.ones(1, 2), [2.0])
print(_lib.native, param.tolist())
for w in caught:
    print(w.category.__name__, str(w.message))
"""


def import_with(library: bytes | Path | None, folder: Path) -> list[str]:
    """Import a copy of the package beside a given `_C_cpu.so`, and compute something."""
    package = folder / "landscapex"
    package.mkdir()
    (package / "__init__.py").touch()
    for name in ("_lib", "_ops", "_fallback", "errors"):
        shutil.copy(ROOT / "landscapex" / f"{name}.py", package)
    if isinstance(library, bytes):
        (package / "_C_cpu.so").write_bytes(library)
    elif library is not None:
        shutil.copy(library, package / "_C_cpu.so")
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run(
        [sys.executable, "-P", "-c", PROBE], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.parametrize(
    ("library", "cause"),
    [
        (None, "they were not built"),
        (b"", "file too short"),
        (b"not a library, but long enough to be read as one" * 10, "invalid ELF header"),
    ],
)
def test_fault_29_a_library_that_cannot_be_loaded_ends_in_one_warning(library, cause, tmp_path):
    result, *warnings = import_with(library, tmp_path)
    assert result == "False [3.0, 3.0]"
    assert len(warnings) == 1
    assert warnings[0].startswith("LandscapexWarning The compiled kernels of landscapex are not")
    assert cause in warnings[0]
    assert "landscapex.doctor() says how to get them" in warnings[0]


@needs_compiler
def test_fault_29_a_library_for_another_torch_ends_in_one_warning(tmp_path):
    """It asks for a function that this torch does not have."""
    source = tmp_path / "other.cpp"
    source.write_text("void torch_of_the_future(); struct S { S() { torch_of_the_future(); } } s;")
    library = tmp_path / "other.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", source, "-o", library], check=True)
    result, *warnings = import_with(library, tmp_path)
    assert result == "False [3.0, 3.0]"
    assert len(warnings) == 1
    assert "undefined symbol" in warnings[0]


@native
def test_the_library_that_was_built_is_loaded_without_a_warning(tmp_path):
    assert import_with(Path(find_spec("landscapex._C_cpu").origin), tmp_path) == ["True [3.0, 3.0]"]


@pytest.mark.parametrize("version", ["2.9.1+cpu", "1.13.0", "2.2.0a0+git1234"])
def test_fault_29_an_old_torch_is_refused_with_the_command_that_helps(version):
    with pytest.raises(ImportError, match=rf"got {re.escape(version)}; .* 'torch>=2\.10'"):
        _lib._check_torch(version)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.1+cu130", "3.0.0.dev1"])
def test_a_recent_torch_is_taken(version):
    _lib._check_torch(version)


# --- doctor


def test_doctor_says_what_is_there():
    report = _doctor.doctor()
    assert repr(report) == str(report)
    assert report.torch in str(report)
    assert report.native == _lib.native
    assert report.cuda == _lib.cuda
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.native = True
    if report.native:
        assert report.cpu_chosen in report.cpu_built
        assert f"compiled for {', '.join(report.cpu_built)}; in use: {report.cpu_chosen}" in str(
            report
        )
    for item in report.missing:
        assert f"missing: {item.what}\n  why: {item.why}" in str(report)
        assert "pip install" in item.command


def test_doctor_names_the_command_for_missing_kernels(monkeypatch):
    monkeypatch.setattr(_lib, "native", False)
    monkeypatch.setattr(_lib, "missing", "they were not built")
    monkeypatch.setattr(_doctor.shutil, "which", lambda name: None)
    report = _doctor.doctor()
    assert report.missing[0].what == "compiled kernels"
    assert report.missing[0].why == "they were not built"
    assert report.missing[0].command.startswith(f"apt-get install g++ && {sys.executable} -m pip")
    assert report.cpu_chosen == ""
    assert "CPU kernels   plain PyTorch" in str(report)


def test_doctor_says_what_the_compiled_engine_runs_on():
    native_program = pytest.importorskip("landscapex._program")
    report = _doctor.doctor()
    assert report.engine == native_program.isa()
    assert report.engine_bf16 in native_program.bf16_kernels()
    assert f"grid programs in {report.engine}; bf16: {report.engine_bf16}" in str(report)
    assert "compiled engine" not in [item.what for item in report.missing]


@pytest.mark.parametrize("headers", [True, False])
def test_doctor_explains_a_build_without_the_compiled_engine(monkeypatch, tmp_path, headers):
    """Where Python has no headers, CMake builds everything else."""
    if headers:
        (tmp_path / "Python.h").touch()
    monkeypatch.setitem(sys.modules, "landscapex._program", None)
    monkeypatch.setattr(_lib, "native", True)
    monkeypatch.setattr(_doctor.sysconfig, "get_path", lambda kind: str(tmp_path))
    (item,) = _doctor._missing_engine()
    assert item.what == "compiled engine"
    assert "the compiled engine is not installed" in item.why
    assert ("headers of Python are not there" in item.why) is not headers
    python = f"python{sys.version_info.major}.{sys.version_info.minor}-dev"
    assert item.command.startswith(f"apt-get install {python} && ") is not headers
    assert "pip install --force-reinstall" in item.command
    monkeypatch.setattr(_lib, "native", False)  # then the command for all kernels is enough
    assert _doctor._missing_engine() == []


def test_doctor_tells_operators_for_cuda_from_the_engine_there(monkeypatch):
    """Both are built with nvcc, but the engine needs the headers of Python too."""
    pytest.importorskip("landscapex._program")
    monkeypatch.setattr(_lib, "native", True)
    monkeypatch.setattr(_lib, "cuda", True)
    monkeypatch.setitem(sys.modules, "landscapex._program_cuda", None)
    (item,) = _doctor._missing_engine()
    assert item.what == "compiled engine for CUDA"
    assert "the compiled engine for CUDA is not installed" in item.why
    monkeypatch.setitem(sys.modules, "landscapex._program_cuda", sys)
    assert _doctor._missing_engine() == []


@native
def test_doctor_explains_missing_cuda_kernels(monkeypatch):
    if _lib.cuda:
        pytest.skip("nothing is missing here")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_doctor.platform, "system", lambda: "Linux")
    item = _doctor.doctor().missing[0]
    assert item.what == "CUDA kernels"
    assert "torch is a build without CUDA" in item.why  # what the build of this library said
    assert item.command.startswith("install the CUDA 13 toolkit (nvcc), then: ")
