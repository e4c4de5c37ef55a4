"""Every block of code that a person may copy runs, and every link leads somewhere."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import landscapex
from landscapex.engine.native import unavailable

ROOT = Path(__file__).parents[1]
# What the package does not need, so that these run where `make check` has installed it.
FRAMEWORKS = {
    "docs/huggingface.md": ("transformers", "accelerate"),
    "docs/lightning.md": ("lightning",),
}
# Without a block of code: the first two include a page that is on the list, others write the rest.
WITHOUT_CODE = {
    "docs/contributing.md",
    "docs/changelog.md",
    "docs/compared.md",
    "docs/reliability.md",
}
EVERY_PAGE = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
]
PAGES = [
    pytest.param(page, marks=[pytest.mark.slow] if page in FRAMEWORKS else [])
    for page in EVERY_PAGE
    if page not in WITHOUT_CODE
]
PACKAGE = Path(landscapex.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    text = (ROOT / page).read_text()
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) * 2 == len(re.findall(r"^```", text, re.MULTILINE)), "an unclosed block"
    return found


def run_python(code: str, namespace: dict, page: str) -> str:
    """Execute a block and return what it prints, or write it to the file its first line names."""
    name = re.match(r"# (\w+\.py)\n", code)
    if name:
        Path(name[1]).write_text(code)
        return ""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(code, page, "exec"), namespace)
    return printed.getvalue()


# What a batch system has, and this machine may not: two tasks, and no second chance.
SLURM = f"""
set -u
SLURM_ARRAY_TASK_ID=0 SLURM_ARRAY_TASK_COUNT=1 SLURM_JOB_ID=7 SLURM_NNODES=1 SLURM_JOB_NODELIST=x
export SLURM_NTASKS=2 SLURM_PROCID
landscapex() {{ {shlex.quote(sys.executable)} -W ignore -m landscapex "$@"; }}
torchrun() {{ while [ "$1" != -m ]; do shift; done; shift; "$@"; }}
srun() {{ for SLURM_PROCID in 0 1; do "$@"; [ "$1" = bash ] || break; done; }}
scontrol() {{ [ "$1" = show ] && echo localhost || exit 9; }}
export -f landscapex
"""


def run_script(code: str) -> None:
    """Run a batch script to its end, on a small grid."""
    small = code.replace("--points 101", "--points 5")
    subprocess.run(["bash", "-c", SLURM + small], check=True, timeout=200)


def run_command(line: str) -> None:
    """Run a command that is ours; ask the tool whether it knows the others."""
    command = shlex.split(line)
    if command == ["landscapex", "demo"]:
        command += ["--points", "11"]  # the whole of it is `make demo`
    if command[0] == "landscapex":
        subprocess.run([sys.executable, "-m", *command], check=True, timeout=60)
    elif command[0] == "torchrun":
        torchrun = [sys.executable, "-m", "torch.distributed.run", *command[1:]]
        subprocess.run(torchrun, check=True, timeout=200, capture_output=True)
    elif command[0] == "make":
        subprocess.run(["make", "-n", *command[1:]], cwd=ROOT, check=True, capture_output=True)
    else:
        assert command[:2] == ["pip", "install"], f"nobody knows how to check {line!r}"
        assert command[-1] == "."  # installing is tested elsewhere; here, that the options exist
        pip = [sys.executable, "-m", *command, "--help"]
        subprocess.run(pip, check=True, capture_output=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page, tmp_path, monkeypatch):
    if page == "docs/speed.md" and unavailable():
        pytest.skip("it shows the compiled engine")
    for module in FRAMEWORKS.get(page, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    printed = ""
    found = blocks(page)
    assert found
    for language, code in found:
        if language == "python":
            printed = run_python(code, namespace, page)
        elif language == "text":  # what the block above prints
            assert printed == code or unavailable()
        elif language == "bash":
            run_script(code)
        else:
            assert language == "console", f"{page}: a block in {language!r}"
            for line in code.splitlines():
                assert line.startswith("$ ")
                run_command(line[2:])


@pytest.mark.parametrize("page", EVERY_PAGE)
def test_no_block_escapes(page):
    """Blocks begin at the margin with three backticks; pages said to be without have none."""
    text = (ROOT / page).read_text()
    fences = re.findall(r"^[ \t]*(?:```+|~~~+).*$", text, re.MULTILINE)
    if page in WITHOUT_CODE:
        assert [fence for fence in fences if not re.match(r"```(\{include\}|$)", fence)] == []
    else:
        assert len(fences) == 2 * len(blocks(page))
    assert not re.search(r"^(?: {4}|\t)(?:>>>|\$ |import )", text, re.MULTILINE)  # by indentation


@pytest.mark.parametrize("page", [*EVERY_PAGE, "CHANGELOG.md"])
def test_what_is_in_angle_brackets_is_code(page):
    """It would be taken for HTML, and not be seen."""
    text = re.sub(r"^```.*?^```|<!-- .*? -->", "", (ROOT / page).read_text(), flags=re.M | re.S)
    assert re.findall(r"<[a-z][^>\n]*>", re.sub(r"`[^`]*`", "", text)) == []


@pytest.mark.parametrize("page", [*EVERY_PAGE, "CHANGELOG.md"])
def test_every_link_to_a_file_leads_somewhere(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("https://"):
            assert (ROOT / page).parent.joinpath(target).exists(), target


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
