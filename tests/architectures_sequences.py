"""Recurrent networks and transformers of the architectures."""

from __future__ import annotations

from typing import Any

import models
import torch
from architecture_case import architecture, flat_tokens, labelled, masked_tokens, text, tokens
from torch import Tensor, nn
from torch.nn import functional as F

# --- recurrent ------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """Any of torch's recurrent layers; classifies by its output at the last step."""

    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


@architecture(labelled(5, 3))
def lstm() -> nn.Module:
    return Recurrent(nn.LSTM(3, 8, batch_first=True), 8)


@architecture(labelled(5, 3))
def two_layer_lstm() -> nn.Module:
    return Recurrent(nn.LSTM(3, 6, 2, batch_first=True, dropout=0.5), 6)


@architecture(labelled(5, 3))
def bidirectional_lstm() -> nn.Module:
    return Recurrent(nn.LSTM(3, 5, batch_first=True, bidirectional=True, bias=False), 10)


@architecture(labelled(5, 3))
def projected_lstm() -> nn.Module:
    return Recurrent(nn.LSTM(3, 8, batch_first=True, proj_size=4), 4)


@architecture(labelled(5, 3))
class LSTMWithState(nn.Module):
    """The initial state is computed from the first vector; classifies by the final state."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(3, 6)
        self.lstm, self.head = nn.LSTM(3, 6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        state = self.start(x[:, 0]).tanh()[None]
        _, (h, c) = self.lstm(x.transpose(0, 1), (state, torch.zeros_like(state)))
        return self.head(torch.cat([h[0], c[0]], 1))


@architecture(labelled(5, 3))
class GRUOverAllSteps(nn.Module):
    """Two layers, both ways; the mean of all steps."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0].mean(1))


@architecture(tokens())
class GRUOverTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.gru, self.head = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.gru(self.embedding(ids))[1][-1])


@architecture(labelled(5, 3))
def elman() -> nn.Module:
    return Recurrent(nn.RNN(3, 8, batch_first=True), 8)


@architecture(labelled(5, 3))
def elman_with_relu() -> nn.Module:
    return Recurrent(nn.RNN(3, 8, 2, batch_first=True, nonlinearity="relu"), 8)


# --- attention ------------------------------------------------------------------------------------


class Attention(nn.Module):
    """One packed projection; scaled dot products by torch's own function."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, width = x.shape
        q, k, v = (
            part.view(n, t, self.heads, -1).transpose(1, 2) for part in self.qkv(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, width))


class Block(nn.Module):
    """A transformer layer with the norms first."""

    def __init__(self, width: int, heads: int = 2, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU("tanh"), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """Radford et al. 2019: learned positions, causal attention, output tied to the embedding."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(12, width), nn.Embedding(6, width)
        self.blocks = nn.Sequential(*(Block(width, causal=True) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 12, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.positions(positions)
        return self.head(self.norm(self.blocks(x)))


def next_token(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(*flat_tokens(model(batch["input_ids"]), batch["labels"]))


architecture(text(), next_token)(GPT)


@architecture(text(), None)
class GPTWithLoss(GPT):
    """Returns its loss, as the models of Hugging Face do."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Any:
        logits = super().forward(input_ids)
        loss = None if labels is None else F.cross_entropy(*flat_tokens(logits, labels))
        return models.ModelOutput(loss, logits)


@architecture(masked_tokens(), None)
def masked_transformer() -> nn.Module:
    """torch's own encoder with a mask for the padding; takes mappings, returns its loss."""
    return models.TransformerClassifier(12, 8)


@architecture(labelled(3, 8, 8))
class ViT(nn.Module):
    """Dosovitskiy et al. 2021: patches, a class token, learned positions."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 5, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class MixerBlock(nn.Module):
    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.positions = nn.Sequential(nn.Linear(length, 6), nn.GELU(), nn.Linear(6, length))
        self.channels = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.positions(self.norm1(x).mT).mT
        return x + self.channels(self.norm2(x))


@architecture(labelled(3, 8, 8))
class Mixer(nn.Module):
    """Tolstikhin et al. 2021."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(MixerBlock(4, 8), MixerBlock(4, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.norm(x).mean(1))


@architecture(tokens())
class HandWrittenAttention(nn.Module):
    """Products, a mask, softmax; the mask hides the future and one token."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, width, padding_idx=0)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        scores = self.q(x) @ self.k(x).transpose(-2, -1) / self.q.out_features**0.5
        future = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        scores = scores.masked_fill((ids == 3)[:, None], -1e4)
        y = torch.matmul(scores.softmax(-1), self.v(x))
        return self.head(y.sum(1) / ids.shape[1])


@architecture(labelled(5, 6))
class MultiHead(nn.Module):
    """torch's own module, samples first; another sequence attends to it."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(2, 6))
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query.expand(x.shape[0], -1, -1)
        y, _ = self.attention(query, x, x, need_weights=False)
        return self.head(y.flatten(1))


@architecture(labelled(5, 6))
class RotaryRMS(nn.Module):
    """Llama's parts: RMS norm, rotated queries and keys, gated layer; samples in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(6, eps=1e-6), nn.RMSNorm(6, eps=1e-6)
        self.qkv, self.out = nn.Linear(6, 18, bias=False), nn.Linear(6, 6, bias=False)
        self.gate, self.up = nn.Linear(6, 9, bias=False), nn.Linear(6, 9, bias=False)
        self.down, self.head = nn.Linear(9, 6, bias=False), nn.Linear(6, 4, bias=False)
        angle = torch.outer(torch.arange(5.0), torch.tensor([1.0, 0.5, 0.25]))
        self.register_buffer("cos", torch.cat([angle, angle], -1).cos(), persistent=False)
        self.register_buffer("sin", torch.cat([angle, angle], -1).sin(), persistent=False)

    def rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * self.cos + torch.cat([-second, first], -1) * self.sin

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).split(6, -1)
        y = F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v, is_causal=True)
        x = x + self.out(y)
        y = self.norm2(x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(x.mean(1))


@architecture(tokens())
class TextCNN(nn.Module):
    """Kim 2014: windows of words, the maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.convs = nn.ModuleList(nn.Conv1d(6, 4, size) for size in (2, 3))
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(1, 2)
        return self.head(torch.cat([c(x).relu().max(2).values for c in self.convs], 1))


@architecture(masked_tokens())
class MaskedMean(nn.Module):
    """The mean of the embeddings of words, without the padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(12, 6), nn.Linear(6, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        mask = attention_mask.unsqueeze(-1).float()
        x = (self.embedding(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        return self.head(x.tanh())
