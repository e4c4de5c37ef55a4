"""Curvature of the mean loss over all batches: what is kept between products, and what is not."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscapex._batch import Batch, map_leaves, sample_count
from landscapex.batches import _free_host_memory
from landscapex.curvature.linear import SymmetricOperator
from landscapex.curvature.linearized import Builder, Built, HessianBuilder, Linearized, Parts
from landscapex.curvature.soundness import asymmetry, check_graph
from landscapex.curvature.standing import Standing, own_arithmetic, twice_differentiable, widened
from landscapex.engine.batch_norm import batch_norms
from landscapex.errors import EmptyDataError
from landscapex.model.entries import Entry
from landscapex.model.generators import common_draws
from landscapex.model.guard import exclusive, is_held
from landscapex.model.parameters import ParameterSpace
from landscapex.session import Session

_SEED = 0  # of losses that draw random numbers: those of every other evaluation
_SHARE = 4  # of the free memory, one part may hold graphs
# Two ways to the same kernels differ by rounding at most; a penalty that one of them misses does
# not.
_SAME = {torch.float32: 1e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Block:
    """Some leaves of a linearisation as a flat vector of their own.

    Attributes:
        chosen: Which leaves.
        entries: Where each lies in the flat vector.
    """

    chosen: tuple[int, ...]
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Entries of the flat vector."""
        return self.entries[-1].end

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a flat vector, or copies where dtypes differ, each like its leaf."""
        return [_like(vector[e.offset : e.end], e) for e in self.entries]

    def add(self, total: Tensor, parts: Parts, factor: float) -> None:
        """Add multiples of tensors, each like its leaf, to a flat vector."""
        for e, part in zip(self.entries, parts, strict=True):
            if part is not None:
                real = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
                total[e.offset : e.end].add_(real.reshape(-1), alpha=factor)


@dataclass(frozen=True)
class Plan:
    """How a model can be linearised; the same at every point.

    Attributes:
        own: Whether the model's own tensors must move, as something holds them directly.
        bytes_per_sample: Kept by the graph of a batch.
        asymmetry: Of the matrix of the first batch, relative; see `soundness.asymmetry`.
        known: Whether the point could tell: where derivatives are not finite, nothing shows
            through which tensors the loss depends on the parameters.
    """

    own: bool
    bytes_per_sample: float
    asymmetry: float
    known: bool


class Linearization:
    """The curvature of the mean loss where the model of a session stands.

    It holds copies of parameters and buffers; whatever happens to the model later, products stay
    the same. Graphs of as many batches as fit are kept between products; the others are formed
    anew, under the model's lock.

    Args:
        session: Whose model stands at the point, with batch norm as asked for.
        space: The parameters that derivatives are taken by.
        builder: Linearises one batch.
        memory: Bytes that kept graphs may take; None for a quarter of what is free.
        plan: Of another point of the same session, for the same parameters and kind; None to find
            out here.

    Attributes:
        space: The parameters.
        plan: How the model was linearised.
        loss: The mean loss here, weight decay included.
        gradient: Of the objective, weight decay included, flat.
        kept: How many batches need no forward pass at a product.

    Raises:
        EmptyDataError: If nothing counts.
    """

    def __init__(
        self,
        session: Session,
        space: ParameterSpace,
        builder: Builder,
        *,
        memory: int | None,
        plan: Plan | None,
    ) -> None:
        engine = session.engine
        self.space = space
        self._standing = Standing(space)
        self._batches = next(iter(engine.data.values()))
        self._flags = [(m, m.training) for m in space.model.modules()]
        self._precision = engine.precision
        self._random = engine.common_seed
        self._builder = builder
        self._session = weakref.ref(session)
        with self._prepared():
            self.plan = plan or self._make_plan()
            if self.plan.own and plan is None:
                session.checked_center()  # a loss that draws random numbers never agrees
            self._fill(self._affordable(memory), session.objective.weight_decay)

    @property
    def whole(self) -> Block:
        """All leaves."""
        return Block(tuple(range(len(self.space.entries))), self.space.entries)

    @property
    def batches(self) -> int:
        """How many count."""
        return sum(share > 0 for share in self._shares)

    def product(
        self,
        block: Block,
        vector: Tensor,
        *,
        decay: float = 0.0,
        take: Callable[[Any, list[Tensor]], Parts] | None = None,
    ) -> Tensor:
        """The mean over batches, weighted, times a vector.

        Args:
            block: Which parameters; of others the vector is zero, and so is the product.
            vector: ``(size of block,)``.
            decay: A multiple of the vector to be added.
            take: What a batch gives for the split vector, if not its own product.

        Returns:
            Summed in float64, rounded once to the dtype of the vector.
        """
        parts = block.split(vector)
        # a single batch without more is not added to anything: nothing to round
        alone = not decay and self.batches == 1
        dtype = vector.dtype if alone else torch.float64
        total = torch.zeros(block.size, dtype=dtype, device=vector.device)

        def add(share: float, term: Any) -> None:
            found = take(term, parts) if take else term.product(parts, block.chosen)
            block.add(total, found, share)

        self.visit(add)
        if decay:
            total.add_(vector, alpha=decay)
        return total.to(vector.dtype)

    def visit(self, use: Callable[[float, Any], None]) -> None:
        """Call a function with share and linearisation of every batch that counts, in order.

        Args:
            use: Must not keep the linearisation.
        """
        if self.kept == self.batches:
            with own_arithmetic(self._precision, self.space.device):
                for b, term in self._terms.items():
                    use(self._shares[b], term)
            return
        with self._held(), self._prepared(), self._draws():
            for b, batch in enumerate(self._batches):
                if b in self._terms:
                    use(self._shares[b], self._terms[b])
                elif self._shares[b] or self._random:
                    with self._entered() as leaves:
                        built = self._build(b, batch, leaves, self._starts[b])
                        if self._shares[b]:
                            use(self._shares[b], built.term)

    def _fill(self, keep: frozenset[int], weight_decay: float) -> None:
        """Linearise every batch once."""
        self._terms: dict[int, Linearized] = {}
        self._starts: list[int] = []
        weights, losses, start = [], [], 0
        total = torch.zeros(self.space.size, dtype=torch.float64, device=self.space.device)
        with self._draws():
            for b, batch in enumerate(self._batches):
                with self._entered() as leaves:
                    built = self._build(b, batch, leaves, start)
                    self._starts.append(start)
                    start += built.labels
                    weights.append(built.weight)
                    losses.append(built.loss * built.weight if built.weight else 0.0)
                    if built.term is not None:
                        self.whole.add(total, built.term.gradient(), built.weight)
                        if b in keep:
                            self._terms[b] = built.term
        weight = math.fsum(weights)
        if not weight:
            raise EmptyDataError("At least one sample or label must count, got none.")
        self._shares = [n / weight for n in weights]
        self.kept = len(self._terms)
        self.loss = sum(losses) / weight
        total /= weight
        if weight_decay:
            here = self.space.gather().double()
            self.loss += 0.5 * weight_decay * float(here @ here)
            total.add_(here, alpha=weight_decay)
        self.gradient = total.to(self.space.dtype)

    def _build(self, b: int, batch: Batch, leaves: list[Tensor], start: int) -> Built:
        batch = map_leaves(batch, widened) if self._standing.widened else batch
        try:
            return self._builder(self.space.model, batch, leaves, start)
        except Exception as error:
            error.add_note(f"landscapex: in batch {b} of {self._batches.name}")
            raise

    def _make_plan(self) -> Plan:
        """Whether copies serve, and how large a graph is, by the first batch that counts."""
        for b, batch in enumerate(self._batches):
            if (plan := self._try(b, batch)) is not None:
                return plan
        return Plan(not self._standing.lendable, 0.0, 0.0, known=False)

    def _try(self, b: int, batch: Batch) -> Plan | None:
        """Linearise a batch by the model's own tensors and by copies; None if nothing counts."""
        standing = self._standing
        saved = _Saved(standing.memory())
        # moving what has 16 bits itself would take another dtype
        ways = [] if standing.widened and standing.lendable else [standing.exchanged]
        ways += [standing.lent] if standing.lendable else []
        gradients: list[Parts] = []
        differences: list[float] = []
        for way in ways:
            with self._draws(), way() as leaves:
                with saved.counted():
                    term = self._build(b, batch, leaves, 0).term
                if term is None:
                    return None
                graph = term.graph()
                check_graph(graph)
                gradients.append(term.gradient())
                differences.append(asymmetry(self._operator(term), graph))
        serves = standing.lendable and _agree(gradients[0], gradients[-1])
        found = differences[-1 if serves else 0]
        per_sample = saved.largest / max(1, sample_count(batch))
        known = math.isfinite(found) and math.isfinite(_size(gradients[0]))
        return Plan(not serves, per_sample, found, known)

    def _operator(self, term: Linearized) -> SymmetricOperator:
        """The matrix of one batch."""

        def product(vector: Tensor) -> Tensor:
            total = torch.zeros_like(vector)
            self.whole.add(total, term.product(self.whole.split(vector), self.whole.chosen), 1.0)
            return total

        return SymmetricOperator(product, self.space.size, self.space.dtype, self.space.device)

    def _affordable(self, memory: int | None) -> frozenset[int]:
        """Which batches are kept: those at the beginning, as many as fit."""
        if self.plan.own:
            return frozenset()
        sizes = self._batches.sizes
        if memory is None and len(sizes) == 1:  # forming it anew would take as much
            return frozenset({0})
        budget = _free_memory(self.space.device) // _SHARE if memory is None else memory
        fitting, needed = [], 0.0
        for b, size in enumerate(sizes):
            needed += size * self.plan.bytes_per_sample
            if needed <= budget:
                fitting.append(b)
        # draws of a random loss are those of one pass over all
        if self._random and len(fitting) < len(sizes):
            return frozenset()
        return frozenset(fitting)

    def _entered(self) -> contextlib.AbstractContextManager[list[Tensor]]:
        return self._standing.exchanged() if self.plan.own else self._standing.lent()

    def _prepared(self) -> contextlib.AbstractContextManager[None]:
        return twice_differentiable(
            self.space.model,
            self._precision,
            self.space.device,
            fixed=not isinstance(self._builder, HessianBuilder),
        )

    def _draws(self) -> contextlib.AbstractContextManager[None]:
        return common_draws(_SEED) if self._random else contextlib.nullcontext()

    @contextlib.contextmanager
    def _held(self) -> Iterator[None]:
        """The model in our hands and in the modes of the beginning."""
        session = self._session()
        alive = session is not None and not session.closed and is_held(self.space.model)
        with contextlib.nullcontext() if alive else exclusive(self.space):
            for module, training in self._flags:
                module.training = training
            yield


class _Saved:
    """Counts the bytes that graphs keep, copies of the model's own tensors left out."""

    def __init__(self, known: set[int]) -> None:
        self._known = known
        self.largest = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            if tensor.layout == torch.strided and not tensor.is_nested:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self._known:
                    sizes[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would be a cycle

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        self.largest = max(self.largest, sum(sizes.values()))


def statistics(session: Session) -> str:
    """How batch norm enters the curvature, in words."""
    if not batch_norms(session.space.model):
        return "no batch norm"
    return {
        "eval": "running statistics, as constants",
        "batch": "statistics of each batch, differentiated",
    }[session.objective.bn]


def _agree(own: Sequence[Tensor | None], copied: Sequence[Tensor | None]) -> bool:
    """Whether two gradients of one batch are the same but for rounding."""
    pairs = [(a, b) for a, b in zip(own, copied, strict=True) if a is not None or b is not None]
    size = _size(own)
    if not math.isfinite(size):  # sizes tell nothing
        return all(
            a is not None and b is not None and torch.equal(a.isfinite(), b.isfinite())
            for a, b in pairs
        )
    for a, b in pairs:
        tensor = b if a is None else a
        assert tensor is not None
        tolerance = _SAME[tensor.dtype.to_real()]
        difference = _norm(tensor if a is None or b is None else a - b)
        if not difference <= tolerance * (_norm(a) + 1e-2 * size):
            return False
    return True


def _size(gradient: Sequence[Tensor | None]) -> float:
    """The largest norm; NaN if one is."""
    return float(np.max([_norm(g) for g in gradient], initial=0.0))


def _norm(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(torch.linalg.vector_norm(tensor))


def _like(part: Tensor, entry: Entry) -> Tensor:
    """A part of a flat vector in the shape and dtype of a leaf."""
    half = entry.dtype in (torch.float16, torch.bfloat16)
    part = part.view(entry.real_shape).to(torch.float32 if half else entry.dtype.to_real())
    return torch.view_as_complex(part.contiguous()) if entry.dtype.is_complex else part


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else _free_host_memory()
