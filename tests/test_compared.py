"""The comparison with other tools: its truths are true, its page says what was answered."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import compare
import compare_models as known
import compare_page
import compare_run
import compare_surfaces
from compare_cases import OURS, TOOLS, Case, Column, Entry, Raised, answer

ROOT = Path(__file__).parents[1]
CASES = {case.name: case for case in compare.CASES}

# --- Truths --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def generator():
    """The cases seed torch's generator, as they do in processes of their own."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.parametrize("name", CASES)
def test_landscapex_is_right(name):
    case = CASES[name]
    true = case.true()
    given = answer(case.entry(OURS))
    assert list(given) == [c.title for c in case.columns]
    for column in case.columns:
        value = given[column.title]
        assert not isinstance(value, Raised), value
        assert column.right(value, true[column.title]), (column.title, value)


@pytest.mark.parametrize("make", known.SPLITS.values(), ids=known.SPLITS)
def test_the_mean_and_the_curvature_over_batches_are_those_of_torch(make):
    split = make()
    x, y = split.x.double(), split.y

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x @ weight.view(3, 10).T, y)

    weight = split.model().weight.detach().double().flatten()
    assert split.loss() == pytest.approx(loss(weight).item(), rel=1e-12)
    hessian = torch.autograd.functional.hessian(loss, torch.zeros(30).double())
    assert split.top_eigenvalue() == pytest.approx(torch.linalg.eigvalsh(hessian)[-1].item())
    # and it matters how the batches weigh
    means = [F.cross_entropy(split.model()(a), b).item() for a, b in split.batches]
    assert abs(np.mean(means) - split.loss()) > 1e-2


@pytest.mark.parametrize("name", known.NETWORKS)
def test_differences_give_the_hessian_that_two_derivatives_give(name):
    model, ((x, y),) = known.network(name)
    wide = model.double()
    shapes = {n: p.shape for n, p in wide.named_parameters()}
    start = nn.utils.parameters_to_vector(wide.parameters()).detach()

    def loss(vector: torch.Tensor) -> torch.Tensor:
        pieces = vector.split([math.prod(s) for s in shapes.values()])
        values = {n: p.view(s) for (n, s), p in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(wide, values, (x.double(),)), y)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        right = torch.autograd.functional.hessian(loss, start).numpy()
    np.testing.assert_allclose(known.differenced_hessian(*known.network(name)), right, atol=1e-8)


@pytest.mark.parametrize(
    ("matrix", "values"),
    [
        *((build(), values) for build, values in known.MATRICES.values()),
        *(
            (known.spectrum(values).matrix, sorted(values, key=abs)[::-1][:5])
            for values in (known.OUTLIERS, known.HARMONIC, known.OPPOSITE, known.TWO_VALUES)
        ),
    ],
)
def test_the_matrices_have_these_eigenvalues_and_are_hessians(matrix, values):
    found = np.linalg.eigvalsh(matrix.double().numpy())
    largest = np.sort(np.abs(found))[::-1][: len(values)]
    np.testing.assert_allclose(largest, np.abs(values), atol=1e-5)
    model = known.Quadratic(matrix)
    inputs, targets = known.any_batch()[0]
    hessian = torch.autograd.functional.hessian(
        lambda w: known.Mean()(torch.func.functional_call(model, {"w": w}, (inputs,)), targets),
        model.w.detach(),
    )
    torch.testing.assert_close(hessian, matrix.float())


def test_the_quadratic_and_its_cliff():
    model, cliff = known.Bowl(), known.Cliff()
    inputs = torch.zeros(2)
    for a, b, word in ((0.0, 0.0, ""), (0.4, 0.4, "nan"), (-0.4, -0.4, "inf"), (0.4, -0.4, "")):
        for each in (model, cliff):
            each.x.data.fill_(0.6 + a)
            each.y.data.fill_(0.8 + b)
        x, y = 0.6 + a, 0.8 + b
        assert model(inputs)[1].item() == pytest.approx(x * x / 2 + 5 * y * y + x * y, rel=1e-6)
        assert cliff(inputs)[1].item() == pytest.approx(
            float(word) if word else model(inputs)[1].item(), nan_ok=True
        )


# --- Verdicts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "true", "right"),
    [
        (1.009, 1.0, True),
        (1.011, 1.0, False),
        (0.009, 0.0, True),
        (-0.011, 0.0, False),
        (math.nan, 0.0, False),
        (math.inf, 1.0, False),
        ([25.0, 0.2, 0.0], [25.0, 0.0, 0.0], True),  # relative to the largest
        ([25.0, 0.3, 0.0], [25.0, 0.0, 0.0], False),
        ([25.0, 0.0], [25.0, 0.0, 0.0], False),
        ("NaN", "NaN", True),
        ("4.25", "NaN", False),
        (4.25, "NaN", False),
    ],
)
def test_right_is_within_what_a_column_allows(value, true, right):
    assert Column("x", 0.01).right(value, true) == right
    assert Column("x", 0.01, judged=False).right(value, true)


def test_a_column_that_raises_leaves_the_others_their_answers():
    def broken() -> float:
        raise ZeroDivisionError("float division by zero\nand much more")

    given = answer(Entry("x", "f()", lambda: {"a": 1, "b": broken, "c": lambda: "NaN"}))
    assert given == {"a": 1.0, "b": Raised("ZeroDivisionError: float division by zero"), "c": "NaN"}


def test_wrong_directions_are_seen():
    """Each defect that the case is there for, planted into the directions of landscapex."""
    draw = compare_surfaces.DRAWS[0].run

    def parallel(model, seed):
        first, _ = draw(model, seed)
        return [first, first]

    def longer(model, seed):
        first, second = draw(model, seed)
        first = dict(first)
        first["0.weight"] = first["0.weight"] * torch.linspace(1, 2, 8).view(8, 1, 1, 1)
        return [first, second]

    def the_same(model, seed):
        return draw(model, 0)

    def lengths(model, seed):
        return [
            {n: p.detach().abs() if p.ndim == 1 else d[n] for n, p in model.named_parameters()}
            for d in draw(model, seed)
        ]

    def buffers(model, seed):
        moved = {"1.running_var": torch.ones(8)}
        return [{**d, **moved} for d in draw(model, seed)]

    def undefined(model, seed):
        return [{n: t / t.norm() for n, t in d.items()} for d in draw(model, seed)]

    case, true = compare_surfaces.DIRECTIONS, compare_surfaces.DIRECTIONS.true()
    for planted, wrong in (
        (parallel, compare_surfaces.COSINE),
        (the_same, compare_surfaces.AGAIN),
        (longer, compare_surfaces.FILTERS),
        (lengths, compare_surfaces.BIASES),
        (buffers, compare_surfaces.BUFFERS),
        (undefined, compare_surfaces.FRESH),
    ):
        given = answer(
            Entry("x", "", lambda planted=planted: compare_surfaces.about_directions(planted))
        )
        found = {c.title for c in case.columns if not c.right(given[c.title], true[c.title])}
        assert wrong in found, planted.__name__


def test_what_is_left_behind_is_seen():
    def everything(model: nn.Module) -> None:
        model.eval()
        torch.rand(1)
        with torch.no_grad():
            model[0].weight[0] += 1  # 9 of 2,994 entries
            model[5].weight.copy_(model[5].weight + 1)
        model[1].running_mean += 1

    left = compare_surfaces.left_behind(everything)
    assert list(left.values()) == ["97 %", 1, "evaluation", "moved"]
    assert compare_surfaces.left_behind(lambda model: None) == compare_surfaces.UNTOUCHED


# --- Processes -----------------------------------------------------------------------------------


def test_a_question_is_asked_in_another_process():
    assert compare_run.ask(os.getpid, 60) != os.getpid()


def test_a_tool_that_hangs_is_stopped():
    begin = time.monotonic()
    with pytest.raises(compare_run.Stopped, match=r"stopped after 0\.2 s"):
        compare_run.ask(lambda: time.sleep(60), 0.2)
    assert time.monotonic() - begin < 30


def test_a_process_that_dies_is_told():
    with pytest.raises(compare_run.Stopped, match="its process ended with -9"):
        compare_run.ask(lambda: os.kill(os.getpid(), signal.SIGKILL), 60)


def test_what_is_raised_is_an_answer():
    def refuse() -> None:
        print("a tool that talks")
        pytest.skip("needs the other tools")  # no Exception

    assert compare_run.ask(refuse, 60) == Raised("Skipped: needs the other tools")


def test_everyone_who_is_installed_is_asked_and_dying_is_their_answer():
    case = dataclasses.replace(
        made_up(),
        entries=[
            Entry(OURS, "ours()", lambda: {"a": 1.0, "b": "x"}),
            Entry("landscaper", "dies()", lambda: os.kill(os.getpid(), signal.SIGKILL)),
            Entry("losscape", "gone()", lambda: {}),
        ],
    )
    assert compare_run.answers(case, {"losscape": "no such version"}) == {
        "true": {"a": 1.0, "b": "x"},
        OURS: {"a": 1.0, "b": "x"},
        "landscaper": Raised("its process ended with -9"),
    }


def test_a_tool_that_cannot_be_installed_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_run, "TOOLS", {"nobody": "nobody", "landscaper": "landscaper"})
    monkeypatch.setattr(compare_run, "pins", lambda: {"nobody": "1", "landscaper": "1.3.1"})
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "landscaper").mkdir()  # is there already
    assert compare_run.install(tmp_path) == {"nobody": "pip failed"}
    assert sys.path[1] == str(tmp_path / "landscaper")


def test_every_tool_is_pinned():
    assert set(compare_run.pins()) == set(TOOLS.values())


# --- The page ------------------------------------------------------------------------------------


def made_up() -> Case:
    return Case(
        name="made-up",
        title="Is `a` 1?",
        about="It is.",
        columns=[Column("a", 0.01), Column("b")],
        true=lambda: {"a": 1.0, "b": "x"},
        entries=[
            Entry(OURS, "ours()", dict),
            Entry("landscaper", "theirs()", dict),
            Entry("landscaper", "theirs(better=True)", dict, "better"),
            Entry("losscape", "other()", dict),
            Entry("PyHessian", "missing()", dict),
        ],
        notes={"landscaper": "It counts from 1."},
        absent="curvlinops has no opinion.",
    )


def results(**changes) -> compare_page.Results:
    row = {"cpu ms": 2.0, "cpu ratio": 4.0, "cpu ratio min": 3.5, "cpu ratio max": 4.5}
    answers = {
        "true": {"a": 1.0, "b": "x"},
        OURS: {"a": 1.0000001, "b": "x"},
        "landscaper": {"a": 2.0, "b": "x"},
        "landscaper, better": {"a": 1.001, "b": "x"},
        "losscape": {"a": Raised("ValueError: no a"), "b": "y"},
    }
    made = compare_page.Results(
        answers={"made-up": answers},
        missing={"PyHessian": "no such version"},
        versions={OURS: "1.2", "torch": "3.4"},
        kernels="plain PyTorch",
        times={"per point": {"landscaper": row}, "per product": {"curvlinops": row}},
        processor="an abacus",
    )
    return dataclasses.replace(made, **changes)


def test_the_page_shows_what_is_right_and_what_is_wrong():
    text = compare_page.page([made_up()], results())
    lines = text.splitlines()
    assert "| *true* | 1 | x |" in lines
    assert "| landscapex | 1 | x |" in lines
    assert "| landscaper | **2** | x |" in lines
    assert "| landscaper, better | 1.001 | x |" in lines
    assert "| losscape | **ValueError** | **y** |" in lines
    assert "* losscape, a: `ValueError: no a`" in lines
    assert "* landscaper: `theirs()`. It counts from 1." in lines
    assert "* landscaper, better: `theirs(better=True)`." in lines
    assert "curvlinops has no opinion." in lines
    assert "PyHessian was not run: it could not be installed (`no such version`)." in lines
    assert "Versions: landscapex 1.2, torch 3.4. landscapex ran on plain PyTorch." in lines
    (summary,) = (line for line in lines if line.startswith("| Is `a` 1? |"))
    cells = [cell.strip() for cell in summary.split("|")[2:-1]]
    by_tool = dict(zip([OURS, *TOOLS], cells, strict=True))
    assert by_tool[OURS] == "right"
    assert by_tool["landscaper"] == "**1 of 2** (right)"
    assert by_tool["losscape"] == "**0 of 2**"
    assert by_tool["PyHessian"] == "not run"
    assert by_tool["curvlinops"] == "-"


def test_landscapex_has_no_favours_on_the_page():
    answers = {**results().answers["made-up"], OURS: {"a": 1.02, "b": Raised("KeyError: 'b'")}}
    text = compare_page.page([made_up()], results(answers={"made-up": answers}))
    assert "| landscapex | **1.02** | **KeyError** |" in text
    assert "| **0 of 2** |" in text


def test_an_entry_that_was_stopped_has_no_value():
    answers = {**results().answers["made-up"], "landscaper": Raised("stopped after 2 s")}
    text = compare_page.page([made_up()], results(answers={"made-up": answers}))
    assert "| landscaper | **stopped after 2 s** | **stopped after 2 s** |" in text
    assert "* landscaper: `stopped after 2 s`" in text


def test_times_stand_in_their_section_alone():
    row = {"cpu ms": 9.0, "cpu ratio": 1.0, "cpu ratio min": 1.0, "cpu ratio max": 1.0}
    other = results(times={"per point": {"losscape": row}}, processor="a slide rule")
    pages = [compare_page.page([made_up()], r) for r in (results(), other)]
    assert "| per point | landscaper | 2 | 4.00 (3.50-4.50) |" in pages[0]
    assert "| per product | curvlinops | 2 | 4.00 (3.50-4.50) |" in pages[0]
    assert pages[0] != pages[1]
    without = [re.sub(r"## Times\n.*?(?=## )", "", text, flags=re.DOTALL) for text in pages]
    assert without[0] == without[1]


def test_times_that_could_not_be_taken_are_told():
    text = compare_page.page([made_up()], results(times=Raised("stopped after 2 s")))
    assert "Not measured: `stopped after 2 s`" in text


@pytest.mark.parametrize(
    ("value", "true", "shown"),
    [
        (3e-9, 0.0, "0"),
        ([24.999996, -1.9e-9, 3e-10], [25.0, 0.0, 0.0], "25, 0, 0"),
        (0.000123, 0.000123, "0.000123"),
        ("a|b", "a|b", "a\\|b"),
    ],
)
def test_rounding_errors_of_zeros_are_not_shown(value, true, shown):
    """They differ from machine to machine."""
    column = Column("a", 1e-3)
    case = dataclasses.replace(made_up(), columns=[column])
    assert list(compare_page._cells(case, {"a": value}, {"a": true})) == [shown]


# --- What is committed ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def committed() -> str:
    return (ROOT / "docs" / "compared.md").read_text()


def test_the_committed_page_has_all_cases_and_the_pinned_versions(committed):
    for case in compare.CASES:
        assert f"\n## {case.title}\n\n{case.about}\n" in committed
        for entry in case.entries:
            assert f"\n| {entry.label} | " in committed
            assert f"`{entry.call}`" in committed
    for tool, distribution in TOOLS.items():
        assert f"{tool} {compare_run.pins()[distribution]}" in committed


def test_landscapex_is_right_on_the_committed_page(committed):
    for case in compare.CASES:
        assert f"\n| {case.title} | right |" in committed


INSTALLED = [
    pytest.param(case, entry, id=f"{case.name}-{entry.label}", marks=pytest.mark.slow)
    for case in compare.CASES
    for entry in case.entries
    if entry.tool != OURS
]


@pytest.mark.parametrize(("case", "entry"), INSTALLED)
def test_the_committed_page_shows_what_other_tools_answer(case, entry, committed):
    given = compare_run.ask(lambda: answer(entry), 100)
    if isinstance(given, Raised) and given.message.startswith(("Skipped", "ModuleNotFoundError")):
        pytest.skip(given.message)
    section = committed.split(f"\n## {case.title}\n")[1].split("\n## ")[0]
    row = next(line for line in section.splitlines() if line.startswith(f"| {entry.label} | "))
    answered = zip(
        case.columns,
        compare_page._cells(case, given, case.true()),
        row.removeprefix(f"| {entry.label} | ").removesuffix(" |").split(" | "),
        strict=True,
    )
    varying = case.varying.get(entry.label, ())
    differ = {c.title: (now, then) for c, now, then in answered if now != then}
    assert {title: both for title, both in differ.items() if title not in varying} == {}
