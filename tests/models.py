"""Small networks of many kinds for the tests, each seeded, with data that fit them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

RESNET20_WEIGHTS = Path(__file__).parent / "data" / "cifar10_resnet20.safetensors"


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """Build a module from a seed, without moving the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, bias: bool = True, seed: int = 0) -> nn.Module:
    """Linear layers of the given sizes (default 10-16-3) with an activation between them."""
    sizes = sizes or (10, 16, 3)

    def build() -> nn.Module:
        layers: list[nn.Module] = []
        for a, b in pairwise(sizes):
            layers += [nn.Linear(a, b, bias=bias), act()]
        return nn.Sequential(*layers[:-1])

    return seeded(build, seed)


class LeNet(nn.Module):
    """LeNet-5 for 28x28 grey images: two convolutions, three linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(400, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv1(x).relu(), 2)
        x = F.max_pool2d(self.conv2(x).relu(), 2).flatten(1)
        return self.fc3(self.fc2(self.fc1(x).relu()).relu())


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a shortcut that subsamples and pads channels with zeros (option A)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return (x + y).relu()


class ResNet20(nn.Module):
    """The CIFAR ResNet of He et al. 2016, section 4.2, with n = 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1)
        self.layer2 = self._stage(16, 32, 2)
        self.layer3 = self._stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
        rest = [BasicBlock(outputs, outputs, 1) for _ in range(2)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def resnet20() -> ResNet20:
    """The trained ResNet-20, in evaluation mode."""
    model = seeded(ResNet20)
    missing, unexpected = model.load_state_dict(load_file(RESNET20_WEIGHTS), strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    return model.eval()


@dataclass
class ModelOutput:
    """What Hugging Face models return, as far as a loss is concerned."""

    loss: Tensor | None
    logits: Tensor


class TransformerClassifier(nn.Module):
    """A transformer encoder over tokens that takes mapping batches and computes its own loss."""

    def __init__(self, vocabulary: int = 30, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> ModelOutput:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        x = self.encoder(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        mask = attention_mask[..., None].to(x.dtype)
        logits = self.head((x * mask).sum(1) / mask.sum(1))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return ModelOutput(loss, logits)


class TiedLMHeadModel(nn.Module):
    """A language model whose output layer is its embedding; loss shifted by one token."""

    def __init__(self, vocabulary: int = 20, width: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> ModelOutput:
        states = self.embedding(input_ids)
        context = states.cumsum(1) / torch.arange(1, input_ids.shape[1] + 1)[:, None]
        logits = self.head(self.mix(context).tanh())
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return ModelOutput(loss, logits)


class LSTMClassifier(nn.Module):
    """A two-layer LSTM over a sequence of vectors; classifies by its last state."""

    def __init__(self, inputs: int = 5, width: int = 12, classes: int = 3) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class ConvNet(nn.Module):
    """Convolution, batch norm, dropout, transposed convolution: one of everything with a filter."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.3)
        self.up = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2)
        self.head = nn.Linear(6, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.bn(self.conv(x)).relu())
        return self.head(self.up(x).relu().mean((2, 3)))


class Autoencoder(nn.Module):
    """Regression onto its own input: for losses without classes."""

    def __init__(self, inputs: int = 6, code: int = 2) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, code)
        self.up = nn.Linear(code, inputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x).tanh())


@dataclass(frozen=True)
class Case:
    """A model with batches (ragged last one) and a loss, and how a person would evaluate it."""

    model: nn.Module
    batches: list[Any]
    loss: Any

    def reference(self) -> float:
        """The mean loss over the samples by a plain evaluation loop, in float64."""
        total, count = 0.0, 0
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            for batch in self.batches:
                if isinstance(batch, dict):
                    value, n = self.model(**batch).loss, len(batch["labels"])
                else:
                    inputs, target = batch
                    value, n = getattr(F, self.loss)(self.model(inputs), target), len(target)
                total += n * value.double().item()
                count += n
        self.model.train(training)
        return total / count


def _pairs(rng: torch.Generator, shape: tuple[int, ...], classes: int) -> list[Any]:
    """Batches of 8, 8 and 3 samples."""
    return [
        (torch.randn(n, *shape, generator=rng), torch.randint(classes, (n,), generator=rng))
        for n in (8, 8, 3)
    ]


def _token_batches(rng: torch.Generator) -> list[Any]:
    batches = []
    for n in (8, 8, 3):
        mask = torch.arange(7) < torch.randint(2, 8, (n, 1), generator=rng)
        ids = torch.randint(1, 30, (n, 7), generator=rng) * mask
        labels = torch.randint(4, (n,), generator=rng)
        batches.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})
    return batches


def _mlp_case(rng: torch.Generator) -> Case:
    return Case(mlp(10, 16, 3), _pairs(rng, (10,), 3), "cross_entropy")


def _lenet_case(rng: torch.Generator) -> Case:
    return Case(seeded(LeNet), _pairs(rng, (1, 28, 28), 10), "cross_entropy")


def _conv_case(rng: torch.Generator) -> Case:
    return Case(seeded(ConvNet), _pairs(rng, (1, 6, 6), 3), "cross_entropy")


def _lstm_case(rng: torch.Generator) -> Case:
    return Case(seeded(LSTMClassifier), _pairs(rng, (6, 5), 3), "cross_entropy")


def _transformer_case(rng: torch.Generator) -> Case:
    return Case(seeded(TransformerClassifier), _token_batches(rng), None)


def _autoencoder_case(rng: torch.Generator) -> Case:
    inputs = [torch.randn(n, 6, generator=rng) for n in (8, 8, 3)]
    return Case(seeded(Autoencoder), [(x, x) for x in inputs], "mse_loss")


CASES: dict[str, Callable[[torch.Generator], Case]] = {
    "mlp": _mlp_case,
    "lenet": _lenet_case,
    "conv": _conv_case,
    "lstm": _lstm_case,
    "transformer": _transformer_case,
    "autoencoder": _autoencoder_case,
}


def case(name: str, seed: int = 0) -> Case:
    """One of CASES, the same for the same seed."""
    return CASES[name](torch.Generator().manual_seed(seed))
