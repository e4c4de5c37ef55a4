"""The networks of the tests are what they are said to be."""

from __future__ import annotations

import models
import pytest
import torch
from torch.nn import functional as F


def test_the_resnet20_reaches_its_published_figures(cifar10_test):
    """On the first 100 test images of each class, stored as JPEG of quality 75."""
    inputs, labels = cifar10_test
    model = models.resnet20().double()
    with torch.no_grad():
        outputs = torch.cat([model(batch) for batch in inputs.double().split(100)])
    assert F.cross_entropy(outputs, labels).item() == pytest.approx(0.8219947, abs=1e-7)
    assert (outputs.argmax(1) == labels).double().mean().item() == pytest.approx(0.804)


@pytest.mark.usefixtures("generators_untouched")
@pytest.mark.parametrize("name", models.CASES)
def test_a_case_is_reproducible_and_ends_with_a_smaller_batch(name):
    first, second = models.case(name), models.case(name)
    assert first.reference() == second.reference()
    sizes = [len(next(iter(b.values())) if isinstance(b, dict) else b[0]) for b in first.batches]
    assert sizes[-1] < sizes[0]


def test_padding_does_not_change_the_transformer():
    model = models.seeded(models.TransformerClassifier).eval()
    ids = torch.tensor([[3, 4, 5]])
    padded = torch.tensor([[3, 4, 5, 0, 0]])
    mask = (padded != 0).long()
    torch.testing.assert_close(model(padded, mask).logits, model(ids).logits)


def test_fashion_mnist_is_read_as_it_is_stored(fashion_mnist):
    """The first three test images are a boot, a pullover and a pair of trousers."""
    images, labels = fashion_mnist("t10k", 10_000)
    assert images.shape == (10_000, 1, 28, 28)
    assert labels[:3].tolist() == [9, 2, 1]
    assert labels.bincount().tolist() == [1000] * 10
    assert (images.min().item(), images.max().item()) == (0, 1)
    assert (images[:, 0, 0, 0] == 0).double().mean() > 0.99  # the border is empty
    assert models.seeded(models.LeNet)(images[:3]).shape == (3, 10)
