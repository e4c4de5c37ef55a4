"""What others get: the archive of the sources, wheels made from it, and an installation of them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from landscapex import _lib

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
# Beside them `*.egg-info` and the like would be refused, too: nothing that is not named.
IN_ARCHIVE = {
    "CHANGELOG.md",
    "CMakeLists.txt",
    "LICENSE",
    "PKG-INFO",
    "README.md",
    "csrc",
    "landscapex",
    "pyproject.toml",
}
# What a system with Python and torch has (PEP 600), under the names of Linux.
EVERYWHERE = r"libtorch_cpu|libstdc\+\+|libgcc_s|libm|libc|libpthread|libdl|ld-linux-[\w-]+"

pytest.importorskip("scikit_build_core")
pytestmark = pytest.mark.timeout(600)


def sources(folder: Path) -> set[str]:
    """Files of the package as they belong to it, by name."""
    return {
        path.relative_to(folder).as_posix()
        for path in (folder / "landscapex").rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix not in (".so", ".dylib")
    }


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The archive, made from a copy of the checkout in which things lie about."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "docs", "landscapex", "tests"):
        unwanted = shutil.ignore_patterns("__pycache__", "data*.npz", "_build", "pictures")
        shutil.copytree(ROOT / name, folder / name, ignore=unwanted)
    for path in (*ROOT.glob("*.*"), ROOT / ".gitignore", ROOT / "LICENSE", ROOT / "Makefile"):
        if path.is_file():
            shutil.copy(path, folder)
    for left in (".venv/x.py", "build/y.o", "landscapex/_C_cpu.so", "landscapex/__pycache__/z.pyc"):
        (folder / left).parent.mkdir(exist_ok=True)
        (folder / left).write_bytes(b"left over")
    code = "import sys; sys.path.insert(0, 'csrc'); import lx_backend; print(lx_backend.{})"
    command = [sys.executable, "-c", code.format(f"build_sdist({str(folder / 'dist')!r})")]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder / "dist" / run.stdout.split()[-1]


def wheel(archive: Path, out: Path, *settings: str) -> Path:
    """A wheel that pip makes from the archive."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--disable-pip-version-check", "-w", out]
    command += [word for setting in settings for word in ("--config-settings", setting)]
    # the builder's tools lie beside its interpreter
    tools = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    run = subprocess.run([*command, archive], capture_output=True, text=True, env=tools, cwd=out)
    assert run.returncode == 0, run.stdout + run.stderr
    (made,) = out.glob("*.whl")
    return made


def install(made: Path, folder: Path, *options: str) -> str:
    """Install a wheel into an empty folder, and ask what is there for its main results."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet"]
    command += ["--disable-pip-version-check", "--target", folder, made]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    work = folder / "work"
    work.mkdir()
    clean = {"PATH": os.environ["PATH"], "HOME": str(work), "OMP_NUM_THREADS": "1"}
    clean |= {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, ROOT / "tests" / "installed.py", *options]
    run = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def pure(archive, tmp_path_factory) -> Path:
    """The wheel for platforms without a compiler."""
    return wheel(archive, tmp_path_factory.mktemp("pure"), "wheel.cmake=false")


def test_the_archive_holds_what_builds_and_no_more(archive):
    with tarfile.open(archive) as opened:
        (top,) = {name.split("/")[0] for name in opened.getnames()}
        names = {name.removeprefix(f"{top}/") for name in opened.getnames()}
    assert top == f"landscapex-{SETTINGS['project']['version']}"
    assert {name.split("/")[0] for name in names} == IN_ARCHIVE
    assert {name for name in names if name.startswith("landscapex/")} == sources(ROOT)
    native = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*.[ch]*")}
    assert native <= names
    assert "csrc/lx_backend.py" in names


def test_a_wheel_holds_the_package_and_its_licence_and_no_more(pure):
    assert pure.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(pure) as opened:
        names = set(opened.namelist())
        inside = {name for name in names if name.startswith("landscapex/")}
        described = {name.partition(".dist-info/")[2] for name in names - inside}
        about = HeaderParser().parsestr(
            opened.read(next(n for n in names if n.endswith("METADATA"))).decode()
        )
        licence = opened.read(next(n for n in names if n.endswith("licenses/LICENSE")))
    assert inside == sources(ROOT)
    assert "landscapex/py.typed" in inside
    assert described == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}
    assert licence == (ROOT / "LICENSE").read_bytes()
    project = SETTINGS["project"]
    assert about["Version"] == project["version"]
    assert about["License-Expression"] == project["license"]
    assert about["Requires-Python"] == project["requires-python"]
    assert set(about.get_all("Classifier")) == set(project["classifiers"])
    required = {name for name in about.get_all("Requires-Dist") if "extra ==" not in name}
    assert required == set(project["dependencies"])
    assert "lx.surface(" in about.get_payload()


@pytest.mark.usefixtures("generators_untouched")
def test_without_compiled_libraries_what_users_do_works_all_the_same(pure, tmp_path):
    """Surface, file, pictures, Hessian, trajectory and commands, from an installed wheel."""
    assert f"landscapex in {tmp_path / 'landscapex'} works." in install(pure, tmp_path, "--plain")


def needed(library: Path) -> tuple[set[str], set[str]]:
    """Libraries that one asks for, and folders in which it looks for them, as `readelf` tells."""
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    run = subprocess.run(["readelf", "-d", library], check=True, capture_output=True, text=True)
    names = set(re.findall(r"\(NEEDED\).*\[(.*)\]", run.stdout))
    return names, set(re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", run.stdout))


def asks_for_little(library: Path) -> None:
    names, folders = needed(library)
    assert names, library
    assert {n for n in names if not re.fullmatch(rf"(?:{EVERYWHERE})\.so[.\d]*", n)} == set()
    assert folders == set()


@pytest.mark.skipif(not _lib.native, reason="the compiled libraries were not built")
@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux are looked into")
@pytest.mark.parametrize("name", ["_C_cpu", "_program"])
def test_libraries_ask_for_torch_and_what_every_linux_has(name):
    spec = importlib.util.find_spec(f"landscapex.{name}")
    if spec is None or spec.origin is None:
        pytest.skip("it was not built")
    asks_for_little(Path(spec.origin))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(sys.platform != "linux", reason="libraries of Linux are looked into")
def test_a_wheel_that_is_compiled_from_the_archive_works(archive, tmp_path):
    """Its compiled libraries lie in the package, and nothing else was added."""
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path / "out"
    folder.mkdir()
    # as users build it, but for the level of optimisation, at which it takes a third of the time
    settings = "cmake.define.LANDSCAPEX_CUDA=OFF", "cmake.define.LANDSCAPEX_OPTIMIZE=-O1"
    made = wheel(archive, folder, *settings)
    with zipfile.ZipFile(made) as opened:
        inside = {name for name in opened.namelist() if name.startswith("landscapex/")}
        opened.extractall(tmp_path / "unpacked")
    libraries = inside - sources(ROOT)
    assert libraries == {"landscapex/_C_cpu.so", f"landscapex/_program{EXTENSION_SUFFIXES[0]}"}
    for library in libraries:
        asks_for_little(tmp_path / "unpacked" / library)
    assert " works." in install(made, tmp_path / "installed")


# --- wheels for others


def test_wheels_are_made_for_every_python_that_is_named():
    """A new version of Python has to be named in two places."""
    made = {build.removesuffix("-*") for build in SETTINGS["tool"]["cibuildwheel"]["build"]}
    named = re.findall(r"Python :: 3\.(\d+)", " ".join(SETTINGS["project"]["classifiers"]))
    assert made == {f"cp3{minor}" for minor in named}
    oldest = int(SETTINGS["project"]["requires-python"].removeprefix(">=3."))
    assert min(map(int, named)) == oldest


def test_wheels_for_others_are_tried_before_they_are_handed_out():
    settings = SETTINGS["tool"]["cibuildwheel"]
    (script,) = re.findall(r"\{project\}/(\S+)", settings["test-command"])
    assert (ROOT / script).is_file()
    for system in ("linux", "macos"):
        assert "--exclude libtorch_cpu." in settings[system]["repair-wheel-command"]
