"""Real data that are not part of the repository, read where they are: tests and benchmarks."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
CIFAR_FOLDER = ROOT.parent / "shared" / "data"
# `make data` unpacks here what a package manager did not install.
FASHION_MNIST = [
    Path("/usr/share/datasets/fashion-mnist"),
    ROOT / ".venv/datasets/usr/share/datasets/fashion-mnist",
]


def cifar10_test(folder: Path, per_class: int = 100) -> tuple[Tensor, Tensor] | None:
    """The first test images of each CIFAR-10 class, in the order of the file.

    Inputs (10 * per_class, 3, 32, 32) float32, normalised as the ResNet-20 of `models` was
    trained; labels. None if the folder does not hold them.
    """
    path = folder / "cifar10_jpeg_test.npz"
    if not path.is_file():
        return None
    from PIL import Image

    with np.load(path) as file:
        jpeg, offset, label = file["jpeg"], file["offset"], file["label"].astype(np.int64)
    chosen = np.sort(np.concatenate([np.flatnonzero(label == c)[:per_class] for c in range(10)]))
    images = [
        np.asarray(Image.open(BytesIO(jpeg[offset[i] : offset[i + 1]].tobytes()))) for i in chosen
    ]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    return (x - mean) / std, torch.from_numpy(label[chosen])


def fashion_mnist(part: str, count: int) -> tuple[Tensor, Tensor] | None:
    """The first images of "train" or "t10k", (n, 1, 28, 28) float32 in [0, 1], and labels."""
    folder = next((path for path in FASHION_MNIST if path.is_dir()), None)
    if folder is None:
        return None
    images = _read_idx(folder / f"{part}-images-idx3-ubyte.gz")[:count]
    labels = _read_idx(folder / f"{part}-labels-idx1-ubyte.gz")[:count]
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels).long()


def _read_idx(path: Path) -> np.ndarray:
    """An array of bytes in IDX format: a magic number whose last byte is ndim, sizes, entries."""
    with gzip.open(path) as file:
        content = file.read()
    ndim = content[3]
    shape = np.frombuffer(content, ">i4", ndim, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * ndim).reshape(shape).copy()
