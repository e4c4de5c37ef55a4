"""Questions on curvature: Hessians whose eigenvalues, trace and density are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import compare_models as known
import numpy as np
from compare_cases import Case, Cells, Column, Value
from compare_hessians import (
    CL,
    DENSITIES,
    EVERYONE,
    HE,
    HE_20,
    HE_50,
    HE_120,
    HE_POWER,
    L3,
    LS,
    LX,
    PH,
    SEED,
    TRACES,
    Estimate,
    Nodes,
    Problem,
    Top,
)
from compare_surfaces import LEFT_COLUMNS, UNTOUCHED, entries, left_behind
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Later = dict[str, Callable[[], Value]]

# --- Known spectra -------------------------------------------------------------------------------

TOP = "eigenvalues"


def worst(top: Top, values: np.ndarray, true: Sequence[float]) -> np.ndarray:
    """Of five seeds, what is furthest from the truth, up to sign."""
    found = [top(Problem.of(known.spectrum(values)), len(true), seed) for seed in range(5)]
    return max(found, key=lambda f: np.abs(np.abs(f) - true[: len(f)]).max())


def five_outliers(top: Top) -> Cells:
    return {TOP: worst(top, known.OUTLIERS, known.FIVE).tolist()}


class Leading(Column):
    """Who finds fewer is compared with as many."""

    def right(self, value: Value, true: Value) -> bool:
        return super().right(value, true[: len(value)])


OUTLIERS = Case(
    name="outliers",
    title="The five largest eigenvalues",
    about="A Hessian of 400 parameters, whose eigenvalues are 10, 9, 8, 7, 6 and 395 between -1 "
    "and 1. Right is within 1 %. Of five seeds, the answer that is furthest off. loss-landscape-3d "
    "finds two vectors and no values; theirs are taken from the matrix.",
    columns=[Leading(TOP, 0.01)],
    true=lambda: {TOP: known.FIVE},
    entries=entries([*EVERYONE, HE_50, HE_120, HE_POWER, L3], five_outliers),
    notes={
        "hessian-eigenthings": "By default it takes two steps for each value that is asked for, "
        "and says which did not converge. With 120 it does not reorthogonalise, by default above "
        "50, and finds copies of one value.",
        "loss-landscape-3d": "At most 20 steps of power iteration, and no word on whether they "
        "were enough.",
    },
)

PAIR = "largest absolute value"


def opposite(top: Top) -> Cells:
    return {PAIR: float(np.abs(worst(top, known.OPPOSITE, [5.0]))[0])}


PAIRS = Case(
    name="pair",
    title="Two eigenvalues of opposite sign",
    about="5 and -5, and 98 between -4 and 4. Either is right, within 1 %. Of five seeds, the "
    "answer that is furthest off.",
    columns=[Column(PAIR, 0.01)],
    true=lambda: {PAIR: 5.0},
    entries=entries([*EVERYONE, HE_50, HE_POWER], opposite),
    notes={
        "PyHessian": "Power iteration does not converge where two eigenvalues have one size.",
        "landscaper": "The same.",
        "hessian-eigenthings": "Power iteration, and two steps of Lanczos, which is its default "
        "for one value, do not converge, and it says so.",
    },
)


def simple(top: Top) -> Later:
    return {
        name: lambda build=build: top(Problem.of(known.Quadratic(build())), 3, SEED).tolist()
        for name, (build, _) in known.MATRICES.items()
    }


SIMPLE = Case(
    name="simple",
    title="The simplest matrices",
    about="The three largest eigenvalues of the identity, of zero, and of the matrix of rank one "
    "whose entries are all 0.5; 50 parameters, float32. Right is within 0.1 %.",
    columns=[Column(name, 1e-3, digits=3) for name in known.MATRICES],
    true=lambda: {name: values for name, (_, values) in known.MATRICES.items()},
    entries=entries([*EVERYONE, HE_POWER], simple),
    notes={
        "curvlinops": "The error is of SciPy, to which it hands its products. On another processor "
        "it was raised for rank one too: the residual of ARPACK is rounding or exactly zero.",
        "hessian-eigenthings": "It tells rounding from the end of Lanczos by 1e-12, whatever the "
        "size and precision of the matrix.",
    },
    varying={"curvlinops": ["rank one"]},
)

# --- Batches and layers --------------------------------------------------------------------------


def uneven(top: Top) -> Later:
    def largest(make: Callable[[], known.Split]) -> float:
        split = make()
        problem = Problem(split.model(zero=True), split.batches, nn.CrossEntropyLoss())
        return float(top(problem, 1, SEED)[0])

    return {name: lambda make=make: largest(make) for name, make in known.SPLITS.items()}


UNEVEN = Case(
    name="uneven",
    title="The Hessian over uneven batches",
    about="The largest eigenvalue of softmax regression on ten samples, with weights of 0, where "
    "it is a third of that of the mean of x x'. Batches of 8 and 2; two of 5 with 4 labels of "
    "-100, which torch leaves out. Right is within 1 %.",
    columns=[Column(name, 0.01) for name in known.SPLITS],
    true=lambda: {name: make().top_eigenvalue() for name, make in known.SPLITS.items()},
    entries=entries([LX, PH, LS, CL, HE_20], uneven),
    notes={
        "PyHessian": "Batches weigh by their size, not by the labels that count.",
        "landscaper": "The same.",
        "curvlinops": "The same.",
        "hessian-eigenthings": "All batches weigh the same.",
    },
)

MATH = "attention, `MATH`"


def layers(top: Top) -> Later:
    def largest(name: str) -> float:
        return float(top(Problem(*known.network(name), nn.CrossEntropyLoss()), 1, SEED)[0])

    def by_mathematics() -> float:
        with sdpa_kernel(SDPBackend.MATH):
            return largest("attention")

    found: Later = {name: lambda name=name: largest(name) for name in known.NETWORKS}
    return {**found, MATH: by_mathematics}


def true_of_layers() -> Cells:
    found = {}
    for name in known.NETWORKS:
        values = np.linalg.eigvalsh(known.differenced_hessian(*known.network(name)))
        found[name] = float(values[np.abs(values).argmax()])
    return {**found, MATH: found["attention"]}


LAYERS = Case(
    name="layers",
    title="Layers of today",
    about="The largest eigenvalue of a small classifier with a transformer layer "
    "(`nn.TransformerEncoderLayer`), with an LSTM, and with a layer that its forward pass leaves "
    "out. True is that of the whole matrix by central differences of float64 gradients. Right is "
    "within 1 %. In the last column the call stands inside "
    "`torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.",
    columns=[Column(name, 0.01) for name in (*known.NETWORKS, MATH)],
    true=true_of_layers,
    entries=entries([LX, PH, LS, CL, HE_20], layers),
)

# --- Trace and density ---------------------------------------------------------------------------

WORST, MEDIAN, STATED = "worst of ten", "median of ten", "its own error"
SEEDS = range(10)


def traces(estimate: Callable[[Problem, int], Estimate]) -> Cells:
    """Relative errors of ten estimates, and what they say of themselves."""
    problem = Problem.of(known.spectrum(known.HARMONIC).eval())
    true = known.HARMONIC.sum()
    made = [estimate(problem, seed) for seed in SEEDS]
    off = [abs(value / true - 1) for value, _ in made]
    stated = [error / true for _, error in made if error is not None]
    return {
        WORST: max(off),
        MEDIAN: float(np.median(off)),
        STATED: float(np.median(stated)) if stated else "none",
    }


TRACE = Case(
    name="trace",
    title="The trace",
    about="Eigenvalues 1, 1/2, ..., 1/80 in a random basis: the trace is 4.96548. Relative errors "
    "of ten seeds. Those that take a budget get 60 products; PyHessian and landscaper stop by "
    "themselves, by default when two means agree to 0.1 %. Right is a worst error below 0.05.",
    columns=[
        Column(WORST, 0.05, digits=2),
        Column(MEDIAN, digits=2, judged=False),
        Column(STATED, digits=2, judged=False),
    ],
    true=lambda: {WORST: 0.0, MEDIAN: "", STATED: ""},
    entries=entries(TRACES, traces),
    notes={"PyHessian": "Two means that agree may both be wrong.", "landscaper": "The same."},
)

MASS, BELOW = "whole mass", "mass below 3"


def masses(density: Callable[[Problem], Nodes]) -> Cells:
    places, mass = density(Problem.of(known.spectrum(known.TWO_VALUES).eval()))
    return {MASS: float(mass.sum()), BELOW: float(mass[places < 3].sum())}


DENSITY = Case(
    name="density",
    title="The density of eigenvalues",
    about="30 eigenvalues of 1 and 30 of 5, in a random basis. Ten probes of 20 steps, though the "
    "second step finds everything. The mass is 1, and half of it lies below 3; right is within 5 % "
    "and 15 %, as far as ten probes may go.",
    columns=[Column(MASS, 0.05, digits=3), Column(BELOW, 0.15, digits=2)],
    true=lambda: {MASS: 1.0, BELOW: 0.5},
    entries=entries(DENSITIES, masses),
    notes={
        "PyHessian": "It calls a function that torch has removed.",
        "landscaper": "Its weights are whole matrices of squared eigenvectors, of which the first "
        "rows are the weights; here a value has the sum of its column.",
    },
)

# --- What is left behind -------------------------------------------------------------------------

ANSWER = "its answer"


def after(top: Top) -> Cells:
    """Also of one that refuses to answer."""
    answers = []

    def largest(model: nn.Module) -> None:
        try:
            top(Problem(model, known.images(), nn.CrossEntropyLoss()), 1, SEED)
        except RuntimeError:
            answers.append("refused")

    return {**left_behind(largest), ANSWER: answers[0] if answers else "a number"}


LEFT = Case(
    name="after",
    title="The model after its largest eigenvalue",
    about="The network with batch norm and dropout again, in training mode: the model should be as "
    "it was before.",
    columns=[*LEFT_COLUMNS, Column(ANSWER, judged=False)],
    true=lambda: {**UNTOUCHED, ANSWER: ""},
    entries=entries([LX, PH, LS, CL, HE], after),
    notes={
        "PyHessian": "It leaves the model in evaluation mode, in which it rightly works.",
        "landscaper": "The same.",
        "curvlinops": "It refuses a model whose loss is not the same twice, and says so: what it "
        "leaves is of that check.",
        "hessian-eigenthings": "Dropout draws at every step, so that it multiplies by another "
        "matrix each time, and batch norm learns.",
    },
)

CASES = [OUTLIERS, PAIRS, SIMPLE, UNEVEN, LAYERS, TRACE, DENSITY, LEFT]
