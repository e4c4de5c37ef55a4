"""Hessians by each tool: eigenvalues, traces and densities, called as its documentation shows.

Functions import their tool when they are called: one that is missing is missed by its own alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_adapters import Call, silence
from compare_cases import OURS
from compare_models import Batches, Mean, any_batch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn

import landscapex as lx

sys.path.append(str(Path(__file__).parents[1] / "tests"))

SEED = 0

# --- Eigenvalues by each tool --------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A model, its batches and a criterion whose mean is the loss."""

    model: nn.Module
    batches: Batches
    loss: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> Problem:
        """A model whose outputs are its losses."""
        return cls(model, any_batch(), Mean())


Top = Callable[[Problem, int, int], np.ndarray]  # how many, seed


def landscapex_hessian(problem: Problem) -> Any:
    return lx.hessian(problem.model, problem.batches, problem.loss)


def landscapex_top(problem: Problem, k: int, seed: int) -> np.ndarray:
    return landscapex_hessian(problem).eigenvalues(k, "LM", seed=seed).values


def pyhessian_hessian(problem: Problem) -> Any:
    import other_curvature

    return other_curvature.pyhessian.hessian(
        problem.model, problem.loss, dataloader=problem.batches, cuda=False
    )


def pyhessian_top(problem: Problem, k: int, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    return np.array(pyhessian_hessian(problem).eigenvalues(top_n=k)[0])


def landscaper_hessian(problem: Problem) -> Any:
    import other_tools

    return other_tools.landscaper.PyHessian(problem.model, problem.loss, problem.batches, "cpu")


def landscaper_top(problem: Problem, k: int, seed: int) -> np.ndarray:
    torch.manual_seed(seed)
    with silence():
        return np.array(landscaper_hessian(problem).eigenvalues(top_n=k)[0])


def curvlinops_hessian(problem: Problem) -> Any:
    import other_curvature

    parameters = [p for p in problem.model.parameters() if p.requires_grad]
    with silence():  # it prints what differs when it refuses a model
        return other_curvature.curvlinops.HessianLinearOperator(
            problem.model, problem.loss, parameters, problem.batches
        )


def curvlinops_top(problem: Problem, k: int, seed: int) -> np.ndarray:
    operator = curvlinops_hessian(problem).to_scipy()
    start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(operator.dtype)
    values = eigsh(operator, k, which="LM", v0=start, return_eigenvectors=False)
    return values[np.argsort(-np.abs(values))]


def eigenthings_hessian(problem: Problem) -> Any:
    import other_curvature

    things = other_curvature.hessian_eigenthings
    loss = things.supervised_loss(problem.loss)
    return things.HessianOperator(problem.model, problem.batches, loss)


def eigenthings_top(problem: Problem, k: int, seed: int, **options: object) -> np.ndarray:
    import other_curvature

    lanczos = other_curvature.hessian_eigenthings.lanczos
    return lanczos(eigenthings_hessian(problem), k=k, seed=seed, **options).eigenvalues.numpy()


def eigenthings_power(problem: Problem, k: int, seed: int) -> np.ndarray:
    import other_curvature

    search = other_curvature.hessian_eigenthings.deflated_power_iteration
    return search(eigenthings_hessian(problem), k=k, seed=seed).eigenvalues.numpy()


def loss_landscape_3d_top(problem: Problem, _: int, seed: int) -> np.ndarray:
    """It returns two eigenvectors: their Rayleigh quotients, for one batch, in float64."""
    from loss_landscape_3d import generate_hessian_directions

    torch.manual_seed(seed)
    drawn = generate_hessian_directions(problem.model, problem.batches, problem.loss)
    matrix = problem.model.matrix.double()
    vectors = [d["w"].double() for d in drawn[:2]]
    return np.array([float(v @ matrix @ v / (v @ v)) for v in vectors])


LX = Call(OURS, 'lx.hessian(model, data, loss).eigenvalues(k, "LM")', landscapex_top)
PH = Call("PyHessian", "hessian(model, loss, dataloader=data).eigenvalues(top_n=k)", pyhessian_top)
LS = Call("landscaper", "PyHessian(model, loss, data, device).eigenvalues(top_n=k)", landscaper_top)
CL = Call(
    "curvlinops",
    'scipy.sparse.linalg.eigsh(HessianLinearOperator(...).to_scipy(), k, which="LM")',
    curvlinops_top,
)
HE = Call("hessian-eigenthings", "lanczos(HessianOperator(...), k=k)", eigenthings_top)
HE_STEPS = [
    Call(
        "hessian-eigenthings",
        f"lanczos(HessianOperator(...), k=k, max_iter={steps})",
        partial(eigenthings_top, max_iter=steps),
        f"{steps} steps",
    )
    for steps in (20, 50, 120)
]
HE_20, HE_50, HE_120 = HE_STEPS
HE_POWER = Call(
    "hessian-eigenthings",
    "deflated_power_iteration(HessianOperator(...), k=k)",
    eigenthings_power,
    "power iteration",
)
L3 = Call(
    "loss-landscape-3d", "generate_hessian_directions(model, data, loss)", loss_landscape_3d_top
)
EVERYONE = [LX, PH, LS, CL, HE]

# --- Traces --------------------------------------------------------------------------------------

Estimate = tuple[float, float | None]  # and the error that comes with it


def landscapex_trace(problem: Problem, seed: int) -> Estimate:
    made = landscapex_hessian(problem).trace(products=60, seed=seed)
    return made.value, made.standard_error


def pyhessian_trace(problem: Problem, seed: int) -> Estimate:
    torch.manual_seed(seed)
    return float(np.mean(pyhessian_hessian(problem).trace())), None


def landscaper_trace(problem: Problem, seed: int) -> Estimate:
    torch.manual_seed(seed)
    return float(landscaper_hessian(problem).trace()), None


def curvlinops_trace(problem: Problem, seed: int) -> Estimate:
    import other_curvature

    torch.manual_seed(seed)
    xtrace = other_curvature.curvlinops.xtrace
    return float(xtrace(curvlinops_hessian(problem), num_matvecs=60)), None


def eigenthings_trace(problem: Problem, seed: int) -> Estimate:
    import other_curvature

    estimate = other_curvature.hessian_eigenthings.trace
    made = estimate(eigenthings_hessian(problem), num_matvecs=60, seed=seed)
    return made.estimate, made.stderr


TRACES = [
    Call(OURS, "lx.hessian(...).trace(products=60)", landscapex_trace),
    Call("PyHessian", "hessian(...).trace()", pyhessian_trace),
    Call("landscaper", "PyHessian(...).trace()", landscaper_trace),
    Call("curvlinops", "xtrace(HessianLinearOperator(...), num_matvecs=60)", curvlinops_trace),
    Call("hessian-eigenthings", "trace(HessianOperator(...), num_matvecs=60)", eigenthings_trace),
]

# --- Densities -----------------------------------------------------------------------------------

Nodes = tuple[np.ndarray, np.ndarray]  # places and the mass at each


def landscapex_density(problem: Problem) -> Nodes:
    made = landscapex_hessian(problem).spectral_density(probes=10, steps=20, seed=SEED)
    return made.nodes.ravel(), made.weights.ravel() / len(made.nodes)


def pyhessian_density(problem: Problem) -> Nodes:
    torch.manual_seed(SEED)
    nodes, weights = pyhessian_hessian(problem).density(iter=20, n_v=10)
    return np.ravel(nodes), np.ravel(weights) / len(nodes)


def landscaper_density(problem: Problem) -> Nodes:
    """Its weights are matrices: a node has the sum of its column, were they eigenvectors' rows."""
    torch.manual_seed(SEED)
    nodes, weights = landscaper_hessian(problem).density(iter=20, n_v=10)
    places = np.real(nodes)
    masses = np.real(np.asarray(weights)).sum(axis=1) / len(places)
    return places.ravel(), masses.ravel()


def curvlinops_density(problem: Problem) -> Nodes:
    import other_curvature

    torch.manual_seed(SEED)
    approximate = other_curvature.curvlinops.lanczos_approximate_spectrum
    operator = curvlinops_hessian(problem)
    grid, density = approximate(operator, ncv=20, num_repeats=10, boundaries=(1.0, 5.0))
    return on_grid(grid, density)


def eigenthings_density(problem: Problem) -> Nodes:
    import other_curvature

    estimate = other_curvature.hessian_eigenthings.spectral_density
    made = estimate(eigenthings_hessian(problem), num_runs=10, lanczos_steps=20, seed=SEED)
    return on_grid(made.grid, made.density)


def on_grid(grid: Tensor, density: Tensor) -> Nodes:
    """A curve as masses at its points."""
    places = grid.double().numpy()
    return places, density.double().numpy() * np.gradient(places)


DENSITIES = [
    Call(OURS, "lx.hessian(...).spectral_density(probes=10, steps=20)", landscapex_density),
    Call("PyHessian", "hessian(...).density(iter=20, n_v=10)", pyhessian_density),
    Call("landscaper", "PyHessian(...).density(iter=20, n_v=10)", landscaper_density),
    Call(
        "curvlinops",
        "lanczos_approximate_spectrum(operator, ncv=20, num_repeats=10, boundaries=(1, 5))",
        curvlinops_density,
    ),
    Call(
        "hessian-eigenthings",
        "spectral_density(operator, num_runs=10, lanczos_steps=20)",
        eigenthings_density,
    ),
]
