"""How the networks of `architectures` are described, and the data that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

CAPTURED = "captured"
Batch = Any
MakeBatch = Callable[[int, torch.Generator], Batch]


@dataclass(frozen=True)
class Architecture:
    """A small network with data and a loss.

    Attributes:
        name: Of the network.
        create: The model as its class makes it.
        draw: ``draw(n, generator)``: a batch of n samples.
        loss: As in `lx.surface`.
        expected: "captured", or a pattern of the reason why it runs on the eager engine.
        repeatable: Whether the same weights give the same loss twice.
    """

    name: str
    create: Callable[[], nn.Module]
    draw: MakeBatch
    loss: Any
    expected: str = CAPTURED
    repeatable: bool = True

    def build(self) -> nn.Module:
        """The model in evaluation mode, with weights and statistics that are all in use."""
        model = models.seeded(self.create)
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim < 2 and p.is_floating_point():  # biases and factors start at 0 and 1
                    p += 0.2 * torch.randn(p.shape, generator=rng)
            for m in model.modules():
                if isinstance(m, _NormBase) and m.running_mean is not None:
                    m.running_mean.normal_(0, 0.3, generator=rng)
                    m.running_var.uniform_(0.5, 2, generator=rng)
        return model.eval()

    def make_batch(self, n: int, seed: int) -> Batch:
        """A batch of n samples."""
        return self.draw(n, torch.Generator().manual_seed(seed))


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(
    draw: MakeBatch, loss: Any = "cross_entropy", expected: str = CAPTURED, **rest: Any
) -> Callable[[Callable[[], nn.Module]], Callable[[], nn.Module]]:
    """Register a class or a function that makes a model, under its name."""

    def register(create: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        name = create.__name__
        assert name not in ARCHITECTURES
        ARCHITECTURES[name] = Architecture(name, create, draw, loss, expected, **rest)
        return create

    return register


# --- batches --------------------------------------------------------------------------------------


def labelled(*shape: int, classes: int = 4) -> MakeBatch:
    """Normal inputs of this shape, with one class each."""

    def draw(n: int, rng: torch.Generator) -> Batch:
        x = torch.randn(n, *shape, generator=rng)
        return x, torch.randint(classes, (n,), generator=rng)

    return draw


def targeted(shape: tuple[int, ...], target: tuple[int, ...]) -> MakeBatch:
    """Normal inputs and normal targets of these shapes."""

    def draw(n: int, rng: torch.Generator) -> Batch:
        return torch.randn(n, *shape, generator=rng), torch.randn(n, *target, generator=rng)

    return draw


def itself(*shape: int) -> MakeBatch:
    """Inputs that are their own targets."""

    def draw(n: int, rng: torch.Generator) -> Batch:
        x = torch.randn(n, *shape, generator=rng)
        return x, x

    return draw


def tokens(length: int = 6, vocabulary: int = 12, classes: int = 4) -> MakeBatch:
    """Sequences of tokens, with one class each."""

    def draw(n: int, rng: torch.Generator) -> Batch:
        x = torch.randint(vocabulary, (n, length), generator=rng)
        return x, torch.randint(classes, (n,), generator=rng)

    return draw


def text(length: int = 6, vocabulary: int = 12) -> MakeBatch:
    """For language models: tokens and labels; some labels do not count."""

    def draw(n: int, rng: torch.Generator) -> Batch:
        ids = torch.randint(vocabulary, (n, length + 1), generator=rng)
        labels = ids[:, 1:].clone()
        labels[torch.rand(labels.shape, generator=rng) < 0.2] = -100
        labels[:, 0] = ids[:, 1]  # at least one counts
        return {"input_ids": ids[:, :-1].contiguous(), "labels": labels}

    return draw


def masked_tokens(length: int = 6, vocabulary: int = 12, classes: int = 4) -> MakeBatch:
    """Sequences of several lengths, padded; as a mapping."""

    def draw(n: int, rng: torch.Generator) -> Batch:
        mask = torch.arange(length) < torch.randint(2, length + 1, (n, 1), generator=rng)
        ids = torch.randint(1, vocabulary, (n, length), generator=rng) * mask
        labels = torch.randint(classes, (n,), generator=rng)
        return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}

    return draw


def flat_tokens(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Positions as samples, as a loss over tokens has them."""
    return logits.flatten(0, 1), labels.flatten()
