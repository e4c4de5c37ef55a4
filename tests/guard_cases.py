"""A model in the middle of somebody's training, with everything that can get lost."""

from __future__ import annotations

import models
import torch
from torch import nn


class Kitchen(nn.Module):
    """Batch norm, dropout, a tie, a frozen layer, a mask as buffer, weights in any layout."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3).to(memory_format=torch.channels_last)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.frozen = nn.Linear(4, 6).requires_grad_(False)
        self.first = nn.Linear(6, 6)
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.scale = nn.Parameter(torch.randn(6, dtype=torch.bfloat16))
        self.register_buffer("mask", torch.ones(6).expand(2, 6))

    def forward(self, x):
        x = self.drop(self.bn(self.conv(x)).relu()).mean((2, 3))
        x = self.tied(self.first(self.frozen(x)).tanh())
        return x * self.mask[0] * self.scale.float()


def kitchen():
    """In the middle of somebody's training: odd modes, gradients, hooks."""
    model = models.seeded(Kitchen).train()
    model.bn.eval()
    for p in model.parameters():
        if p.requires_grad and p.ndim > 1:
            p.grad = torch.randn_like(p)
    model.conv.register_forward_hook(lambda m, i, o: o + 0)
    model.bn.register_forward_pre_hook(lambda m, i: None)
    model.first.register_full_backward_hook(lambda m, i, o: None)
    model.register_state_dict_post_hook(lambda *a: None)
    return model
