"""Two models of one kind, and a line between them that warns of nothing."""

from __future__ import annotations

import copy
import warnings

import models
import torch

from landscapex.studies.interpolation import interpolate

QUIET = {"progress": False}


def between(a, b, data, loss, **options):
    """A line that warns of nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return interpolate(a, b, data, loss, **{"points": 5, **QUIET, **options})


def two(name):
    """Two models of one kind with different buffers, and data that fit them."""
    first = models.case(name)
    other = copy.deepcopy(first.model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for k, model in enumerate((first.model, other)):
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            for n, b in model.named_buffers():
                if n.endswith("running_var"):
                    b.copy_(torch.rand(b.shape, generator=generator) * 4 + 0.1)
                elif b.is_floating_point():
                    b.copy_(torch.randn(b.shape, generator=generator))
                else:
                    b.fill_(7 + k)
    return first.model, other, first.batches, first.loss
