"""The bundled data and network are what they are said to be."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch.nn import functional as F

from landscapex import examples


def num_right(model, inputs, labels):
    with torch.no_grad():
        return int((model(inputs).argmax(1) == labels).sum())


def test_the_bundled_network_is_as_accurate_as_its_docstring_says():
    model, (inputs, labels), loss = examples.digits()
    assert num_right(model, inputs, labels) == len(labels) == 1437
    assert num_right(model, *examples.digits_test()) == 324
    assert "324 of the 360" in examples.digits.__doc__
    with torch.no_grad():
        centre = getattr(F, loss)(model.double()(inputs.double()), labels)
    assert centre.item() == pytest.approx(0.0179894, rel=1e-4)
    assert sum(p.numel() for p in model.parameters()) == 14_490
    assert not model.training


def test_the_digits_are_those_of_scikit_learn():
    datasets = pytest.importorskip("sklearn.datasets", reason="compares with scikit-learn")
    original = datasets.load_digits()
    train, test = examples.digits()[1], examples.digits_test()
    inputs, labels = (torch.cat(parts) for parts in zip(train, test, strict=True))
    assert torch.equal(inputs.double() * 16, torch.from_numpy(original.data))
    assert torch.equal(labels, torch.from_numpy(original.target).long())
    assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)


def test_each_call_returns_its_own_network():
    first, second = examples.digits()[0], examples.digits()[0]
    with torch.no_grad():
        first[0].weight.zero_()
    assert second[0].weight.norm() > 1


@pytest.mark.usefixtures("generators_untouched")
def test_training_gives_a_network_as_good_as_the_bundled_one():
    model = examples.train_digits(seed=0)
    assert num_right(model, *examples.digits()[1]) >= 1420
    assert num_right(model, *examples.digits_test()) >= 315
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_decides_the_initial_weights():
    def digest(seed):
        state = examples.train_digits(seed, epochs=0).state_dict()
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in state.values())).hexdigest()

    assert digest(3) == digest(3)
    assert digest(3) != digest(4)
