"""A bundled example: real data and a trained network, without network access.

The data are the 1,797 handwritten digits of 8x8 pixels that scikit-learn distributes (see
``data/digits.md`` for their authors and licence). The network is deep and narrow on purpose: eight
hidden layers of 40 units, without skip connections, whose surface is far from a quadratic bowl.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from landscapex.storage import checkpoints

_DATA = Path(__file__).parent / "data"
_NUM_TRAIN = 1437  # the first four fifths; the rest is by other writers
_WIDTH = 40
_DEPTH = 8


def digits() -> tuple[nn.Sequential, tuple[Tensor, Tensor], str]:
    """A network trained on handwritten digits, its training data and its loss.

    Returns:
        ``(model, data, loss)``: the trained network in evaluation mode (14,490 parameters); the
        pair (inputs, labels) of its training part, ``(1437, 64)`` float32 in [0, 1] and
        ``(1437,)`` int64; and ``"cross_entropy"``. The network is right on all of these images
        and on 324 of the 360 of `digits_test` (90 %).

    References:
        E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
        Repository, 1998, https://doi.org/10.24432/C50P49.

    Example:
        >>> model, (inputs, labels), loss = digits()
        >>> (model(inputs).argmax(1) == labels).float().mean().item() > 0.99
        True
    """
    model = _network(seed=0)
    checkpoints.load(model, _DATA / "digits.safetensors")
    return model.eval(), _images(train=True), "cross_entropy"


def digits_test() -> tuple[Tensor, Tensor]:
    """The images that the network of `digits` was not trained on.

    Returns:
        The pair (inputs, labels), ``(360, 64)`` float32 in [0, 1] and ``(360,)`` int64.

    Example:
        >>> digits_test()[0].shape
        torch.Size([360, 64])
    """
    return _images(train=False)


def train_digits(seed: int = 0, *, epochs: int = 40) -> nn.Sequential:
    """Train the network of `digits` from scratch, in a few seconds.

    The bundled weights are the result of ``train_digits(seed=0)``; another machine or version of
    torch rounds differently and ends at slightly other weights. Other seeds give other minima, for
    lines between models. SGD with momentum 0.9, weight decay 5e-3, gradients clipped at norm 1,
    batches of 64, and one cycle of the learning rate up to 0.05.

    Args:
        seed: Of the initial weights and the order of the images. torch's global generator is
            neither read nor changed.
        epochs: Passes over the training part; 0 gives the initial weights.

    Returns:
        The trained network in evaluation mode.

    Example:
        >>> train_digits(seed=1, epochs=0)[0].weight.shape
        torch.Size([40, 64])
    """
    model = _network(seed)
    inputs, labels = _images(train=True)
    order = torch.Generator().manual_seed(seed)
    steps = epochs * -(-_NUM_TRAIN // 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
    if steps:
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(_NUM_TRAIN, generator=order).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    optimizer.zero_grad()
    return model.eval()


def _network(seed: int) -> nn.Sequential:
    """The untrained network: He initialisation from a generator of its own, zero biases."""
    rng = torch.Generator().manual_seed(seed)
    sizes = [64, *[_WIDTH] * _DEPTH, 10]
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        # An ordinary nn.Linear would draw from torch's global generator.
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=rng)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _images(*, train: bool) -> tuple[Tensor, Tensor]:
    part = slice(None, _NUM_TRAIN) if train else slice(_NUM_TRAIN, None)
    with np.load(_DATA / "digits.npz") as file:
        images, labels = file["images"][part], file["labels"][part]
    return torch.from_numpy(images).float() / 16, torch.from_numpy(labels).long()
