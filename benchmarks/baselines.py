"""What people write in plain PyTorch to compute a plane of losses."""

from __future__ import annotations

import contextlib
import copy
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from workloads import Plane, Workload

LOADER_BATCH = 128
VMAP_POINTS = 8
VMAP_BATCH = 1000
_BATCHES = (16, 64, 256, 1024)  # candidates, beside all samples at once
_WARM, _TIMED = 1, 2  # evaluations per candidate

Total = Callable[[Tensor, Tensor], Tensor]  # inputs, labels -> sum of losses


class Unavailable(Exception):
    """Why a contender does not run here."""


@torch.no_grad()
def loss_landscape_style(workload: Workload, plane: Plane) -> np.ndarray:
    """As tomgoldstein/loss-landscape: `set_weights` tensor by tensor, `eval_loss` over a loader."""
    model = copy.deepcopy(workload.model)
    weights = [p.detach().clone() for p in model.parameters()]
    directions = [list(d.values()) for d in plane.directions]
    loader = DataLoader(TensorDataset(workload.inputs, workload.labels), LOADER_BATCH)
    criterion = nn.CrossEntropyLoss()
    losses = np.empty((len(plane.alpha), len(plane.beta)))
    for (i, a), (j, b) in itertools.product(enumerate(plane.alpha), enumerate(plane.beta)):
        changes = [d0 * a + d1 * b for d0, d1 in zip(*directions, strict=True)]
        for p, w, change in zip(model.parameters(), weights, changes, strict=True):
            p.data = w + change
        total, correct = 0.0, 0
        for inputs, labels in loader:
            outputs = model(inputs)
            total += criterion(outputs, labels).item() * len(labels)
            correct += outputs.argmax(1).eq(labels).sum().item()
        losses[i, j] = total / len(workload.labels)
    return losses


@dataclass(frozen=True)
class Setting:
    """How the data are cut and laid out."""

    batch: int
    layout: torch.memory_format = torch.contiguous_format

    def __str__(self) -> str:
        last = ", channels last" if self.layout is torch.channels_last else ""
        return f"batches of {self.batch:,}{last}"


def summed(model: nn.Module) -> Total:
    """Cross entropy of the model, summed over samples."""
    return lambda x, y: F.cross_entropy(model(x), y, reduction="sum")


def summed_onednn(model: nn.Module) -> Total:
    """The same, with linear layers and their ReLU by oneDNN instead of torch's BLAS."""
    layers = list(model) if isinstance(model, nn.Sequential) else [model]
    if not torch.backends.mkldnn.is_available():
        raise Unavailable("this torch is built without oneDNN")
    if not all(isinstance(layer, nn.Linear | nn.ReLU) for layer in layers):
        raise Unavailable("only for models of linear layers and ReLU")

    def total(x: Tensor, y: Tensor) -> Tensor:
        for layer, following in pairwise([*layers, None]):
            if isinstance(layer, nn.Linear):
                relu = "relu" if isinstance(following, nn.ReLU) else "none"
                x = torch.ops.mkldnn._linear_pointwise(x, layer.weight, layer.bias, relu, [], "")
        return F.cross_entropy(x, y, reduction="sum")

    return total


def summed_compiled(model: nn.Module) -> Total:
    """The same as `summed`, by torch.compile, with the weights as inputs."""
    torch.compiler.reset()
    return torch.compile(summed(model), dynamic=False)


def autocast() -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


class InPlace:
    """Data preloaded and cut once, weights written in place, the row's part computed once.

    Args:
        workload: What is evaluated.
        plane: Where.
        setting: Batch size and layout.
        make_total: Makes, of the model, what sums the loss of a batch.
        context: Entered for each point; autocast keeps cast weights for as long as it lasts.
    """

    def __init__(
        self,
        workload: Workload,
        plane: Plane,
        setting: Setting,
        *,
        make_total: Callable[[nn.Module], Total] = summed,
        context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        model = copy.deepcopy(workload.model).to(memory_format=setting.layout)
        self.weights = list(model.parameters())
        self.start = [p.detach().clone() for p in self.weights]
        self.plane = plane
        inputs, labels = workload.inputs.split(setting.batch), workload.labels.split(setting.batch)
        cut = [x.contiguous(memory_format=setting.layout) for x in inputs]
        self.batches = list(zip(cut, labels, strict=True))
        self.samples = len(workload.labels)
        self.total = make_total(model)
        self.context = context

    @torch.no_grad()
    def loss(self) -> float:
        with self.context():
            return sum(self.total(x, y).item() for x, y in self.batches) / self.samples

    @torch.no_grad()
    def __call__(self) -> np.ndarray:
        d1, d2 = (list(d.values()) for d in self.plane.directions)
        losses = np.empty((len(self.plane.alpha), len(self.plane.beta)))
        for i, a in enumerate(self.plane.alpha.tolist()):
            row = torch._foreach_add(self.start, d1, alpha=a)
            for j, b in enumerate(self.plane.beta.tolist()):
                torch._foreach_copy_(self.weights, torch._foreach_add(row, d2, alpha=b))
                losses[i, j] = self.loss()
        return losses


def candidates(workload: Workload) -> Iterator[Setting]:
    """Batch sizes, and for images both layouts."""
    samples = len(workload.labels)
    for batch in (*(b for b in _BATCHES if b < samples), samples):
        yield Setting(batch)
        if workload.inputs.ndim == 4:
            yield Setting(batch, torch.channels_last)


def fastest(options: Sequence[InPlace]) -> int:
    """Which of them takes the least CPU time for a point; each is tried `_TIMED` times, in turn."""
    best = [float("inf")] * len(options)
    for round_ in range(_WARM + _TIMED):
        for k, option in enumerate(options):
            began = time.process_time()
            option.loss()
            if round_ >= _WARM:
                best[k] = min(best[k], time.process_time() - began)
    return best.index(min(best))


def best_setting(workload: Workload, **options: Any) -> Setting:
    """The fastest of `candidates`, by a short trial of each."""
    settings = list(candidates(workload))
    plane = workload.square()
    return settings[fastest([InPlace(workload, plane, s, **options) for s in settings])]


def compiled(workload: Workload, plane: Plane, setting: Setting) -> InPlace:
    """torch.compile at a given setting; compiled and run once."""
    made = InPlace(workload, plane, setting, make_total=summed_compiled)
    try:
        made.loss()
    except Exception as error:  # no compiler, or a model that it refuses
        reason = str(error).strip().splitlines()[0]
        raise Unavailable(f"{type(error).__name__}: {reason}") from error
    return made


@torch.no_grad()
def vmapped(workload: Workload, plane: Plane) -> np.ndarray:
    """functional_call under vmap over points."""
    model = workload.model
    start = dict(model.named_parameters())

    def total(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        outputs = torch.func.functional_call(model, weights, (x,))
        return F.cross_entropy(outputs, y, reduction="sum")

    together = torch.vmap(total, in_dims=(0, None, None))
    batches = list(
        zip(workload.inputs.split(VMAP_BATCH), workload.labels.split(VMAP_BATCH), strict=True)
    )
    axes = np.meshgrid(plane.alpha, plane.beta, indexing="ij")
    points = torch.from_numpy(np.stack(axes, -1).reshape(-1, 2)).float()
    found = []
    for chunk in points.split(VMAP_POINTS):
        moved = {name: _moved(w, plane, name, chunk) for name, w in start.items()}
        parts = [together(moved, x, y).double() for x, y in batches]
        found.append(functools.reduce(torch.add, parts) / len(workload.labels))
    return torch.cat(found).numpy().reshape(len(plane.alpha), len(plane.beta))


def _moved(weight: Tensor, plane: Plane, name: str, chunk: Tensor) -> Tensor:
    """A weight at several points, ``(points, *shape)``."""
    a, b = (c.view(-1, *[1] * weight.ndim) for c in chunk.unbind(1))
    return weight + a * plane.directions[0][name] + b * plane.directions[1][name]
