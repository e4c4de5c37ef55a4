"""Convolutional networks of the architectures."""

from __future__ import annotations

from typing import Any

import torch
from architecture_case import architecture, itself, labelled, targeted
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


@architecture(labelled(1, 12, 12))
def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 4),
    )  # fmt: skip


@architecture(labelled(1, 12, 12))
def classic_lenet() -> nn.Module:
    """As of 1998: average pooling and tanh."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(4, 8, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 20), nn.Tanh(), nn.Linear(20, 4),
    )  # fmt: skip


@architecture(labelled(3, 8, 8))
def vgg9() -> nn.Module:
    layers: list[nn.Module] = []
    inputs = 3
    for width in (4, 8, 8):
        for _ in range(2):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
        layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU()]
    return nn.Sequential(*layers, *head, nn.Linear(16, 4))


class Residual(nn.Module):
    """He et al. 2016: shortcut A subsamples and pads with zeros, B is a convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra, self.shortcut = stride, outputs - inputs, nn.Identity()
        if option == "B" and inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
            self.stride = 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        x = self.shortcut(x)
        if self.stride > 1:
            half = self.extra // 2
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))
        y += x
        return F.relu(y, inplace=True)


class ResNet(nn.Module):
    def __init__(self, option: str, widths: tuple[int, ...] = (4, 6, 8)) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(3, widths[0], 3, 1, 1, bias=False),
            nn.BatchNorm2d(widths[0]),
            nn.ReLU(),
        ]
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for block in range(3):
                stride = 2 if stage and not block else 1
                layers.append(Residual(inputs, width, stride, option))
                inputs = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(inputs, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.avg_pool2d(self.body(x), 2).flatten(1))


@architecture(labelled(3, 8, 8))
def resnet20_option_a() -> nn.Module:
    return ResNet("A")


@architecture(labelled(3, 8, 8))
def resnet20_option_b() -> nn.Module:
    return ResNet("B")


@architecture(labelled(3, 12, 12))
def resnet_stem() -> nn.Module:
    """The first layers of an ImageNet network: overlapping, padded windows; odd sizes after."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), Residual(8, 8, 1, "B"), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


class PreActivation(nn.Module):
    """Zagoruyko and Komodakis 2016: batch norm and ReLU come before each convolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        active = self.bn1(x).relu()
        y = self.conv2(self.drop(self.bn2(self.conv1(active)).relu()))
        return y + self.shortcut(active)


@architecture(labelled(3, 8, 8))
def wide_resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), PreActivation(4, 8, 1), PreActivation(8, 12, 2),
        nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


@architecture(labelled(3, 8, 8))
class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.transition = nn.Sequential(nn.Conv2d(18, 8, 1), nn.AvgPool2d(2))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return self.head(self.transition(torch.cat(features, 1)).mean((2, 3)))


class Squeeze(nn.Module):
    """Hu et al. 2018: channels weighted by what their means say."""

    def __init__(self, width: int, gate: nn.Module) -> None:
        super().__init__()
        self.down, self.up, self.gate = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1), gate

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()))


@architecture(labelled(3, 7, 7))
def squeeze_and_excitation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), Squeeze(8, nn.Sigmoid()),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


class Inverted(nn.Module):
    """Howard et al. 2019: expand, depthwise convolution, squeeze, project."""

    def __init__(self, width: int, kernel: int, act: type[nn.Module]) -> None:
        super().__init__()
        inner = 3 * width
        self.layers = nn.Sequential(
            nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner), act(),
            nn.Conv2d(inner, inner, kernel, padding=kernel // 2, groups=inner, bias=False),
            nn.BatchNorm2d(inner), act(), Squeeze(inner, nn.Hardsigmoid()),
            nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@architecture(labelled(3, 8, 8))
def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.Hardswish(),
        Inverted(6, 3, nn.ReLU6), Inverted(6, 5, nn.Hardswish),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 12), nn.Hardswish(), nn.Linear(12, 4),
    )  # fmt: skip


@architecture(labelled(4, 6, 6))
class ShuffleNet(nn.Module):
    """Zhang et al. 2018: grouped convolutions whose channels are mixed by a permutation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 12, 1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, 2, 1, groups=12)
        self.last = nn.Conv2d(12, 8, 1, groups=4)
        self.shuffle = nn.ChannelShuffle(2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shuffle(self.first(x).relu())
        y = self.last(self.depthwise(y))
        y = y.view(-1, 4, 2, *y.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(y.relu().amax((2, 3)))


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


@architecture(labelled(3, 8, 8))
class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 2, 2)
        self.blocks = nn.Sequential(ConvNeXtBlock(6), ConvNeXtBlock(6))
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean([-2, -1])))


@architecture(labelled(3, 8, 8))
class Inception(nn.Module):
    """Szegedy et al. 2015: windows of several sizes side by side; "same" padding."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.three = nn.Conv2d(3, 3, 3, padding="same")
        self.five = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 5, padding="same"))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(3, 2, 1))
        self.head = nn.Conv2d(13, 4, 3, padding="valid")

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.one(x), self.three(x), self.five(x), self.pool(x)], 1)
        return F.adaptive_avg_pool2d(self.head(y.relu()), (1, 1)).view(-1, 4)


@architecture(labelled(3, 6, 6))
def group_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.LeakyReLU(0.1),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


@architecture(labelled(3, 6, 6))
def instance_norms() -> nn.Module:
    """With factors and without."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.InstanceNorm2d(6, affine=True), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=1), nn.InstanceNorm2d(6), nn.Mish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


@architecture(labelled(2, 20))
def conv1d() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 6, 5, stride=2), nn.BatchNorm1d(6), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(6, 6, 3, padding="same", dilation=2), nn.ELU(0.7), nn.AvgPool1d(2),
        nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


@architecture(labelled(2, 9, 9))
def dilated() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=2, dilation=2), nn.ReLU(),
        nn.Conv2d(6, 6, 3, padding=(1, 4), dilation=(1, 4), stride=(2, 1)), nn.ReLU(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False), nn.Flatten(), nn.Linear(90, 4),
    )  # fmt: skip


@architecture(labelled(1, 4, 6, 6))
def conv3d() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 4),
    )  # fmt: skip


def pixel_labels(n: int, rng: torch.Generator) -> Any:
    """A class for each pixel; some do not count."""
    labels = torch.randint(3, (n, 8, 8), generator=rng)
    labels[torch.rand(labels.shape, generator=rng) < 0.1] = 255
    return torch.randn(n, 2, 8, 8, generator=rng), labels


@architecture(pixel_labels, nn.CrossEntropyLoss(ignore_index=255))
class UNet(nn.Module):
    """Ronneberger et al. 2015; one step up is a transposed convolution, one is bilinear."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 1, 1)]
        )
        self.norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(8, 6, 2, 2)
        self.join = nn.ModuleList([nn.Conv2d(12, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)])
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down[0](x).relu()
        b = self.norm(self.down[1](F.max_pool2d(a, 2))).relu()
        c = self.up(self.down[2](F.max_pool2d(b, 2)).relu())
        c = self.join[0](torch.cat([b, c], 1)).relu()
        c = F.interpolate(c, scale_factor=2, mode="bilinear", align_corners=False)
        return self.head(self.join[1](torch.cat([a, c], 1)).relu())


@architecture(itself(1, 8, 8), "mse_loss")
def convolutional_autoencoder() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 6, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, 2, 1, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(4, 4, 4, 2, 1, groups=2), nn.PReLU(4), nn.Conv2d(4, 1, 3, padding=1),
    )  # fmt: skip


@architecture(targeted((1, 5, 5), (1, 10, 10)), nn.L1Loss())
def super_resolution() -> nn.Module:
    """Shi et al. 2016."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 4, 3, padding=1), nn.PixelShuffle(2)
    )


@architecture(targeted((2, 4, 4), (2, 7, 9)), "mse_loss")
class Upsampling(nn.Module):
    """Sizes given, corners aligned; then nearest; edges reflected and repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect")
        self.last = nn.Conv2d(4, 2, 3, padding=1, padding_mode="replicate")

    def forward(self, x: Tensor) -> Tensor:
        y = F.interpolate(self.conv(x).relu(), size=(5, 6), mode="bilinear", align_corners=True)
        return self.last(F.interpolate(y, size=(7, 9)))


@architecture(labelled(2, 7, 5))
class AdaptivePooling(nn.Module):
    """Windows of unequal sizes, of means and of maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 2)
        self.head = nn.Linear(4 * (12 + 6), 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x).relu()
        parts = F.adaptive_avg_pool2d(y, (4, 3)), F.adaptive_max_pool2d(y, (2, 3))
        return self.head(torch.cat([p.flatten(1) for p in parts], 1))


@architecture(labelled(2, 5, 5))
def weight_norm() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(2, 4, 3)), nn.ReLU(), nn.Flatten(),
        parametrizations.weight_norm(nn.Linear(36, 4)),
    )  # fmt: skip


@architecture(labelled(2, 6, 6))
def dropout_everywhere() -> nn.Module:
    return nn.Sequential(
        nn.Dropout(0.2), nn.Conv2d(2, 6, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.Flatten(),
        nn.Linear(96, 12), nn.AlphaDropout(0.3), nn.SELU(), nn.FeatureAlphaDropout(0.1),
        nn.Linear(12, 4), nn.Dropout(0.9),
    )  # fmt: skip


ALL_ACTIVATIONS = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus,
    nn.Sigmoid, nn.Tanh, nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink,
    nn.Softshrink, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.PReLU,
)  # fmt: skip


@architecture(labelled(5))
class AllActivations(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 2 * len(ALL_ACTIVATIONS))
        self.each = nn.ModuleList([make() for make in ALL_ACTIVATIONS])
        self.threshold, self.gelu = nn.Threshold(0.1, -0.5), nn.GELU("tanh")
        self.head = nn.Linear(2 * len(ALL_ACTIVATIONS), 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.first(x).chunk(len(ALL_ACTIVATIONS), 1)
        y = torch.cat([act(part) for act, part in zip(self.each, parts, strict=True)], 1)
        return self.gelu(self.head(self.threshold(y)))
