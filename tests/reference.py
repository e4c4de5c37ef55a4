"""Slow, literal versions of what landscapex computes, in float64: written from the papers."""

from __future__ import annotations

import copy
import itertools
import math
import random
import signal
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Filters = Callable[[Tensor], list[Tensor]]


def rows(weight: Tensor) -> list[Tensor]:
    """The filters of a layer whose output units lie on axis 0."""
    return [weight[j] for j in range(weight.shape[0])]


def transposed(groups: int) -> Filters:
    """The filters of a transposed convolution (in, out per group, ...): group, then axis 1."""

    def filters(weight: Tensor) -> list[Tensor]:
        inputs = weight.shape[0] // groups
        return [
            weight[g * inputs : (g + 1) * inputs, o]
            for g in range(groups)
            for o in range(weight.shape[1])
        ]

    return filters


def weight_normed_transposed() -> nn.Module:
    return parametrizations.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2))


def old_weight_normed_transposed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(nn.ConvTranspose2d(4, 6, 3, groups=2))


class Kernel5d(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 2, 2, 1, 2))


# layer -> {parameter: its filters, as the layer's definition has them}
LAYERS: dict[str, tuple[Callable[[], nn.Module], dict[str, Filters]]] = {
    "linear": (lambda: nn.Linear(5, 4), {"weight": rows}),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3), {"weight": rows}),
    "conv2d": (lambda: nn.Conv2d(2, 4, 3), {"weight": rows}),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2), {"weight": rows}),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), {"weight": rows}),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4), {"weight": rows}),
    "transposed1d": (lambda: nn.ConvTranspose1d(3, 5, 2), {"weight": transposed(1)}),
    "transposed2d": (lambda: nn.ConvTranspose2d(3, 5, 2), {"weight": transposed(1)}),
    "transposed groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2),
        {"weight": transposed(2)},
    ),
    "transposed depthwise": (
        lambda: nn.ConvTranspose2d(4, 4, 3, groups=4),
        {"weight": transposed(4)},
    ),
    "transposed3d": (lambda: nn.ConvTranspose3d(4, 2, 2, groups=2), {"weight": transposed(2)}),
    "weight norm": (
        weight_normed_transposed,
        {"parametrizations.weight.original1": transposed(2)},
    ),
    "old weight norm": (old_weight_normed_transposed, {"weight_v": transposed(2)}),
    "embedding": (lambda: nn.Embedding(7, 3), {"weight": rows}),
    "attention": (
        lambda: nn.MultiheadAttention(4, 2),
        {"in_proj_weight": rows, "out_proj.weight": rows},
    ),
    "attention kdim": (
        lambda: nn.MultiheadAttention(4, 2, kdim=3, vdim=5),
        {"q_proj_weight": rows, "k_proj_weight": rows, "v_proj_weight": rows},
    ),
    "lstm": (lambda: nn.LSTM(3, 2), {"weight_ih_l0": rows, "weight_hh_l0": rows}),
    "lstm projected": (lambda: nn.LSTM(3, 4, proj_size=2), {"weight_hr_l0": rows}),
    "gru": (lambda: nn.GRU(3, 2, bidirectional=True), {"weight_ih_l0_reverse": rows}),
    "bilinear": (lambda: nn.Bilinear(3, 2, 4), {"weight": rows}),
    "5-d tensor": (Kernel5d, {"weight": rows}),
}


def filter_normalized(d: Tensor, theta: Tensor, filters: Filters) -> Tensor:
    """d_f <- d_f |theta_f| / |d_f| for every filter f (Li et al., NeurIPS 2018, section 4)."""
    d = d.double().clone()
    for d_f, theta_f in zip(filters(d), filters(theta.double()), strict=True):
        length = float(d_f.pow(2).sum().sqrt())
        d_f *= float(theta_f.pow(2).sum().sqrt()) / length
    return d


def mean_loss(
    model: nn.Module, batches: Iterable[Any], loss: Callable[[nn.Module, Any], tuple[Tensor, float]]
) -> float:
    """The evaluation loop that everybody writes; ``loss`` gives the mean of a batch, its weight."""
    was_training = model.training
    model.eval()
    total, weight = 0.0, 0.0
    with torch.no_grad():
        for batch in batches:
            value, n = loss(model, batch)
            total += value.double().item() * n
            weight += n
    model.train(was_training)
    return total / weight


def surface(
    model: nn.Module,
    directions: Sequence[Mapping[str, Tensor]],
    coordinates: Sequence[Sequence[float]],
    loss: Callable[[nn.Module], float],
) -> np.ndarray:
    """``loss`` at ``theta0 + a d1 + b d2 + ...`` for all coordinates, one state_dict per point."""
    model = copy.deepcopy(model)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = np.empty([len(axis) for axis in coordinates])
    for index in itertools.product(*(range(len(axis)) for axis in coordinates)):
        point = dict(start)
        for name in directions[0]:
            total = start[name].double()
            for d, axis, i in zip(directions, coordinates, index, strict=True):
                total = total + axis[i] * d[name].double()
            point[name] = total.to(start[name].dtype)
        model.load_state_dict(point)
        values[index] = loss(model)
    return values


def gram_schmidt(vectors: Tensor) -> Tensor:
    """Each vector minus its projections <v, u> / <u, u> u on those before it."""
    done: list[Tensor] = []
    for v in vectors.double():
        for u in done:
            v = v - (v @ u) / (u @ u) * u
        done.append(v)
    return torch.stack(done)


def running_statistics(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Plain averages over the batches of their means and unbiased variances, per channel."""
    means, variances = [], []
    for x in batches:
        flat = x.double().transpose(0, 1).flatten(1)
        means.append(flat.mean(1))
        variances.append(flat.var(1, unbiased=True))
    return torch.stack(means).mean(0), torch.stack(variances).mean(0)


def philox(counter: Sequence[int], key: Sequence[int]) -> list[int]:
    """Philox 4x32-10 (Salmon et al., SC 2011, section 3.3) of one counter."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def normals(key: int, stream: int, n: int) -> list[float]:
    """Standard normals by Box and Muller, two from each counter (block, stream)."""
    numbers: list[float] = []
    for block in range((n + 1) // 2):
        counter = (block % 2**32, block >> 32, stream % 2**32, stream >> 32)
        w = philox(counter, (key % 2**32, key >> 32))
        u1 = ((w[0] << 21 | w[1] >> 11) + 1) / 2**53
        u2 = (w[2] << 21 | w[3] >> 11) / 2**53
        radius = math.sqrt(-2 * math.log(u1))
        numbers += [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    return numbers[:n]


def everything(model: nn.Module) -> dict[str, object]:
    """All that must be as it was after an evaluation: bytes, identities, modes, hooks, RNG."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    state: dict[str, object] = {}
    for name, t in tensors.items():
        state[f"tensor {name}"] = as_bytes(t)
        state[f"identity {name}"] = (id(t), t.data_ptr(), t.stride(), t.requires_grad, id(t.grad))
        state[f"gradient {name}"] = None if t.grad is None else as_bytes(t.grad)
    for name, module in model.named_modules():
        state[f"mode {name}"] = module.training
        for attribute, value in vars(module).items():
            if attribute.endswith("hooks") or attribute in ("_parameters", "_buffers", "momentum"):
                items = value.items() if isinstance(value, dict) else [(None, value)]
                state[f"{attribute} {name}"] = [(key, id(item)) for key, item in items]
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    state["random"] = random.getstate()
    state["numpy"] = (kind, keys.tobytes(), *rest)
    state["torch"] = torch.get_rng_state().numpy().tobytes()
    state["settings"] = (
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.get_float32_matmul_precision(),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    )
    return state


def as_bytes(t: Tensor) -> bytes:
    """The entries of a tensor, bit by bit."""
    flat = t.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b""


def changes(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """The names under which two states of `everything` differ."""
    return [name for name in {**before, **after} if before.get(name) != after.get(name)]
