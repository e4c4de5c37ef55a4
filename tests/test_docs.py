"""The documentation: the reference names everything that is public, and the gallery says enough.

That it builds without warnings is for ``make docs``.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import landscapex as lx

DOCS = Path(__file__).parents[1] / "docs"
DIRECTIVE = re.compile(r"^\.\. auto(function|class|module):: (landscapex[\w.]*)$", re.MULTILINE)
# Returned for those who write methods of their own, who read the source.
INSIDE = {"ParameterSpace", "Session"}


def public(module: ModuleType) -> list[Any]:
    """What a module offers: its ``__all__``, or all that it defines under a public name."""
    if "__all__" in vars(module):
        return [getattr(module, name) for name in module.__all__]
    return [
        thing
        for name, thing in vars(module).items()
        if not name.startswith("_") and getattr(thing, "__module__", "") == module.__name__
    ]


def find(name: str) -> Any:
    """The object of a dotted name, whatever is a module in it."""
    thing: Any = lx
    for part in name.split(".")[1:]:
        inside = f"{thing.__name__}.{part}" if inspect.ismodule(thing) else ""
        if not hasattr(thing, part) and inside:
            importlib.import_module(inside)
        thing = getattr(thing, part)
    return thing


@cache
def reference() -> dict[str, Any]:
    """Everything that the pages of the reference describe, by name."""
    described = {}
    for page in sorted(DOCS.glob("api/*.rst")):
        for kind, name in DIRECTIVE.findall(page.read_text()):
            thing = importlib.import_module(name) if kind == "module" else find(name)
            assert inspect.isclass(thing) == (kind == "class"), name
            each = public(thing) if kind == "module" else [thing]
            described |= {f"{t.__module__}.{t.__qualname__}": t for t in each}
    return described


def offered() -> Iterator[tuple[str, Any]]:
    """All public names: of the package and of the modules that it exposes."""
    for name in [*lx.__all__, "export"]:  # the last is imported by those who need it
        thing = find(f"lx.{name}")
        if inspect.ismodule(thing):
            for each in public(thing):
                yield f"lx.{name}.{each.__name__}", each
        elif name != "__version__":
            yield f"lx.{name}", thing


def test_every_public_name_is_in_the_reference():
    described = list(reference().values())
    assert [name for name, thing in offered() if thing not in described] == []


@cache
def classes() -> dict[str, Any]:
    """All public classes of the package by their short names."""
    found = {}
    for info in pkgutil.walk_packages(lx.__path__, "landscapex."):
        name = info.name.rpartition(".")[2]
        if name not in ("__main__", "_program") and not name.startswith("_C_"):  # libraries
            module = importlib.import_module(info.name)
            found |= {
                name: thing
                for name, thing in vars(module).items()
                if inspect.isclass(thing) and not name.startswith("_")
                and thing.__module__ == info.name
            }  # fmt: skip
    return found


def given_out(thing: Any) -> set[Any]:
    """Our classes that a function returns, or that the methods and fields of a class give."""
    if inspect.isfunction(thing):
        written = [inspect.signature(thing).return_annotation]
    else:
        members = [m for name, m in vars(thing).items() if not name.startswith("_")]
        functions = [
            m.fget if isinstance(m, property) else getattr(m, "__func__", m) for m in members
        ]
        written = [
            inspect.signature(f).return_annotation for f in functions if inspect.isfunction(f)
        ]
        if dataclasses.is_dataclass(thing):
            written += [f.type for f in dataclasses.fields(thing) if not f.name.startswith("_")]
    names = re.findall(r"[A-Za-z_]\w*", " ".join(map(str, written)))
    here = vars(importlib.import_module(thing.__module__))  # lacks what is imported for types only
    return {known for n in names if inspect.isclass(known := here.get(n, classes().get(n)))}


def test_everything_that_is_returned_is_in_the_reference():
    described = reference()
    ours = set(classes().values()) - {classes()[name] for name in INSIDE}
    missing = {
        f"{made.__name__} of {source}"
        for source, thing in described.items()
        for made in given_out(thing) & ours
        if made not in described.values()
    }
    assert missing == set()


def test_every_page_of_the_reference_is_in_its_table_of_contents():
    pages = {page.stem for page in DOCS.glob("api/*.rst")} - {"index"}
    listed = re.findall(r"^   (\w+)$", (DOCS / "api" / "index.rst").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(pages)


def test_pages_of_the_reference_hold_no_code_of_their_own():
    """Examples are in docstrings, where they are run."""
    for page in DOCS.glob("api/*.rst"):
        assert not re.search(r"code-block|>>>|(?<!toctree)::$", page.read_text(), re.MULTILINE), (
            page.name
        )


def test_every_page_is_in_the_table_of_contents():
    trees = re.findall(r"^:::\{toctree\}\n(.*?)^:::$", (DOCS / "index.md").read_text(), re.M | re.S)
    listed = [line for tree in trees for line in tree.splitlines() if re.match(r"[\w/]+$", line)]
    pages = [path.stem for path in DOCS.glob("*.md") if path.stem != "index"]
    pages += [f"notebooks/{path.stem}" for path in DOCS.glob("notebooks/*.ipynb")]
    assert sorted(listed) == sorted([*pages, "api/index", "pictures/index"])


def test_every_mistake_of_the_list_names_a_test_that_is_there():
    """Traps 1 to 42; the tests that show other tools in them are not ours."""
    rows = re.findall(
        r"^\| (\d+) \| .+ \| (.+) \| (?:`(\w+\.py)` `(\w+)`|none) \|$",
        (DOCS / "trust.md").read_text(),
        re.MULTILINE,
    )
    assert [int(number) for number, *_ in rows] == list(range(1, 43))
    for number, remedy, file, test in rows:
        assert (remedy == "not offered") == (not test), number
        if test:
            assert test.startswith(f"test_trap_{int(number):02}_"), number
            assert not file.startswith("test_other_"), number
            assert f"\ndef {test}(" in (DOCS.parent / "tests" / file).read_text(), test


PICTURES = sorted(DOCS.glob("gallery/*.py"))


@pytest.mark.parametrize("page", PICTURES, ids=lambda page: page.stem)
def test_every_picture_is_explained_and_has_a_source(page):
    """Seen, meant, not meant, from where; and the network is trained in the page."""
    text = page.read_text()
    for part in ("What is seen.", "What it means.", "What it does not mean."):
        assert f"# **{part}** " in text, part
    assert re.search(r"^# Sources?: ", text, re.MULTILINE)
    assert re.search(r"\b(train_digits|train|backward|objective\.gradient)\(", text)


@pytest.mark.parametrize("page", PICTURES, ids=lambda page: page.stem)
def test_every_picture_is_the_last_expression_of_a_block(page):
    """As the builder shows them: a figure that stands elsewhere would be lost."""
    blocks = re.split(r"^# %%$", page.read_text(), flags=re.MULTILINE)
    for tree in map(ast.parse, blocks):
        for node in tree.body[:-1]:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func)
                assert not re.search(r"plot", called), called
