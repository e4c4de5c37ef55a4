"""Everyone who multiplies by a Hessian or looks for its eigenvalues in `bench_curvature`."""

from __future__ import annotations

import contextlib
import copy
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, linearize
from torch.nn import functional as F

import landscapex as lx

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import other_curvature as other
from other_curvature import flat, like

OURS = "landscapex"
EQUAL = 1e-11  # relative, in float64

Batches = Sequence[tuple[Tensor, Tensor]]
Product = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """The mean cross entropy of a model over batches, of one size."""

    model: nn.Module
    batches: Batches

    @property
    def parameters(self) -> list[nn.Parameter]:
        return list(self.model.parameters())

    @property
    def size(self) -> int:
        return sum(p.numel() for p in self.parameters)

    def probe(self) -> Tensor:
        """A unit vector, the same for everyone."""
        v = torch.randn(self.size, generator=torch.Generator().manual_seed(5))
        return v / v.norm()

    def mean(self, each: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Of a flat vector per batch."""
        return torch.stack([each(x, y) for x, y in self.batches]).mean(0)


# --- Products ------------------------------------------------------------------------------------


def gradient(task: Task) -> Callable[[], Tensor]:
    """What a product is measured in."""

    def each(x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(task.model(x), y)
        return flat(torch.autograd.grad(loss, task.parameters))

    return lambda: task.mean(each)


def landscapex(task: Task) -> Product:
    """Batches as all others get them."""
    operator = lx.hessian(task.model, task.batches, "cross_entropy")
    return operator.apply


def landscapex_cut(task: Task) -> Product:
    """The data as one pair, which is cut to fit the cache."""
    x, y = (torch.cat(part) for part in zip(*task.batches, strict=True))
    return lx.hessian(task.model, (x, y), "cross_entropy").apply


def linearized(task: Task) -> Product:
    """`torch.func.linearize` of the gradient, once per batch, and reused."""
    start = {n: p.detach() for n, p in task.model.named_parameters()}

    def pushed(x: Tensor, y: Tensor) -> Callable[..., dict[str, Tensor]]:
        def loss(parameters: Mapping[str, Tensor]) -> Tensor:
            return F.cross_entropy(functional_call(task.model, parameters, (x,)), y)

        return linearize(grad(loss), start)[1]

    kept = [pushed(x, y) for x, y in task.batches]

    def product(v: Tensor) -> Tensor:
        pieces = dict(zip(start, like(v, list(start.values())), strict=True))
        return torch.stack([flat(list(push(pieces).values())) for push in kept]).mean(0)

    return product


def double_backward(task: Task) -> Product:
    """A new graph for every batch and product, as most people write it."""

    def product(v: Tensor) -> Tensor:
        def each(x: Tensor, y: Tensor) -> Tensor:
            parameters = task.parameters
            loss = F.cross_entropy(task.model(x), y)
            first = torch.autograd.grad(loss, parameters, create_graph=True)
            return flat(torch.autograd.grad(first, parameters, like(v, parameters)))

        return task.mean(each)

    return product


def curvlinops(task: Task) -> Product:
    operator = other.curvlinops_hessian(task.model, task.batches, check_deterministic=False)
    return lambda v: operator @ v


def eigenthings(task: Task) -> Product:
    return other.eigenthings_hessian(task.model, task.batches).matvec


def pyhessian(task: Task) -> Product:
    """Several batches: a new graph for every product."""
    made = other.pyhessian_hessian(copy.deepcopy(task.model), task.batches)
    return lambda v: other.pyhessian_product(made, v)


def pyhessian_one_batch(task: Task) -> Product:
    """All samples in one batch, of which it keeps the graph."""
    x, y = (torch.cat(part) for part in zip(*task.batches, strict=True))
    made = other.pyhessian_hessian(copy.deepcopy(task.model), [(x, y)])
    return lambda v: other.pyhessian_product(made, v)


PRODUCTS: dict[str, Callable[[Task], Product]] = {
    OURS: landscapex,
    "landscapex, data as one pair": landscapex_cut,
    "torch.func.linearize, reused": linearized,
    "double backward": double_backward,
    "curvlinops": curvlinops,
    "hessian-eigenthings": eigenthings,
    "PyHessian": pyhessian,
    "PyHessian, one batch": pyhessian_one_batch,
}


def build(
    task: Task, titles: Iterable[str] = tuple(PRODUCTS)
) -> tuple[dict[str, Product], dict[str, str]]:
    """The products of contenders, and why others have none."""
    products, skipped = {}, {}
    for title in titles:
        try:
            products[title] = PRODUCTS[title](task)
        except (RuntimeError, NotImplementedError) as error:  # what torch cannot differentiate
            skipped[title] = str(error).splitlines()[0]
    return products, skipped


def prove_equal(task: Task) -> None:
    """Everyone multiplies by the matrix of two small batches in float64.

    In float32 this cannot be asked for: where rounding moves the input of a ReLU across 0, the
    Hessian of the network in float32 is another one.
    """
    wide = widened(Task(task.model, [(x[:8], y[:8]) for x, y in task.batches[:2]]))
    v = task.probe().double()
    exact = double_backward(wide)(v)
    for title in PRODUCTS:
        for product in build(wide, [title])[0].values():  # one by one: they keep graphs
            found = relative(product(v), exact)
            assert found < EQUAL, f"{title} multiplies by another matrix: {found}"


def differences(task: Task, products: Mapping[str, Product]) -> dict[str, float]:
    """Of products in float32, relative, from one in float64."""
    v = task.probe()
    exact = double_backward(widened(task))(v.double())
    return {title: relative(product(v), exact) for title, product in products.items()}


def widened(task: Task) -> Task:
    """The same in float64."""
    return Task(copy.deepcopy(task.model).double(), [(x.double(), y) for x, y in task.batches])


def relative(product: Tensor, exact: Tensor) -> float:
    return float((product.double() - exact).norm() / exact.norm())


# --- Eigenvalues ---------------------------------------------------------------------------------

FIVE = 5
Pairs = list[tuple[float, float]]  # values and residuals


class Stopped(Exception):
    """Time is over."""


@dataclass
class Watch:
    """Takes the products of a search, keeps the last one for each eigenvector, and ends it in time.

    Attributes:
        seconds: CPU time that may be taken.
        steps: For what cannot end by itself: how many products landscapex took.
        products: How many were taken.
        pairs: Of the last product for each vector.
    """

    seconds: float
    steps: int = 0
    products: int = 0
    pairs: Pairs = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = time.process_time() + self.seconds
        self._before: Tensor | None = None

    def __call__(self, product: Product, v: Tensor) -> Tensor:
        """A product; power iteration goes on from the last one, or starts anew."""
        if time.process_time() > self._end:
            raise Stopped
        made = product(v)
        self.products += 1
        same = self._before is not None and abs(cosine(self._before, v)) > 0.5
        self.pairs[len(self.pairs) - same :] = [pair(v, made)]
        self._before = made
        return made


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def pair(v: Tensor, product: Tensor) -> tuple[float, float]:
    """Rayleigh quotient and residual of a vector, by its product."""
    v, product = v.double(), product.double()
    value = float(v @ product / (v @ v))
    return value, float((product - value * v).norm() / v.norm())


def search_landscapex(task: Task, watch: Watch, tol: float) -> Pairs:
    """Residuals are of products that it takes for the purpose."""
    operator = lx.hessian(task.model, task.batches, "cross_entropy")
    found = operator.eigenvalues(FIVE, "LM", tol=tol)
    watch.products = found.products
    return list(zip(found.values.tolist(), found.residuals.tolist(), strict=True))


def search_lanczos(task: Task, watch: Watch, tol: float) -> Pairs:
    """It takes a number of steps and no tolerance: as many as landscapex took products."""
    operator = other.eigenthings_hessian(task.model, task.batches)
    found = other.hessian_eigenthings.lanczos(
        operator, k=FIVE, max_iter=watch.steps, tol=tol, reorthogonalize=True, seed=0
    )
    watch.products = found.iterations
    return [pair(v, operator.matvec(v)) for v in found.eigenvectors]


def search_deflated(task: Task, watch: Watch, tol: float) -> Pairs:
    """Power iteration, at most 100 steps for a vector as by default."""
    operator = other.eigenthings_hessian(task.model, task.batches)
    watched = other.hessian_eigenthings.LambdaOperator(
        lambda v: watch(operator.matvec, v), operator.size
    )
    with contextlib.suppress(Stopped):
        other.hessian_eigenthings.deflated_power_iteration(watched, k=FIVE, tol=tol, seed=0)
    return watch.pairs


def search_pyhessian(task: Task, watch: Watch, tol: float) -> Pairs:
    """Power iteration, at most 100 steps for a vector as by default; `tol` is of values."""

    class Watched(other.pyhessian.hessian):
        def dataloader_hv_product(self, v: list[Tensor]) -> tuple[float, list[Tensor]]:
            product = super().dataloader_hv_product
            made = watch(lambda _: flat(product(v)[1]), flat(v))
            return float(flat(v) @ made), like(made, self.params)

    made = Watched(copy.deepcopy(task.model), F.cross_entropy, dataloader=task.batches, cuda=False)
    with contextlib.suppress(Stopped):
        other.seeded(0, lambda: made.eigenvalues(tol=tol, top_n=FIVE))
    return watch.pairs


SEARCHES: dict[str, Callable[[Task, Watch, float], Pairs]] = {
    OURS: search_landscapex,
    "hessian-eigenthings, Lanczos": search_lanczos,
    "PyHessian": search_pyhessian,
    "hessian-eigenthings, power iteration": search_deflated,
}
