"""The Gauss-Newton matrix by classes: an exact identity, ranks, traces, axes."""

from __future__ import annotations

import re

import models
import numpy as np
import pytest
import torch
from curvature_cases import split
from curvature_reference import jacobian
from torch import nn

import landscapex as lx
from landscapex.curvature.classes import ClassDecomposition
from landscapex.curvature.operators import hessian
from landscapex.errors import ArgumentError, LossError

CLASSES = 4
PARTS = ("between", "cross", "within", "same")


def classifier(samples: int = 23):
    model = models.mlp(5, 6, CLASSES, act=nn.Tanh).double()
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(samples, 5, generator=rng, dtype=torch.float64)
    return model, x, torch.randint(CLASSES, (samples,), generator=rng)


def by_definition(model, x, y, class_weights=None):
    """The four matrices by loops over samples and classes (Papyan 2019, section 3)."""
    output, jac = jacobian(model, x)
    share = torch.ones(CLASSES).double() if class_weights is None else class_weights
    total = share[y].sum()
    g, w = {}, {}
    for i in range(len(x)):
        p = output[i].softmax(0)
        own = jac[i * CLASSES : (i + 1) * CLASSES]
        for c in range(CLASSES):
            e = torch.zeros(CLASSES).double()
            e[c] = 1
            g[i, c] = own.T @ (p - e)
            w[i, c] = share[y[i]] * p[c] / total
    made = {name: torch.zeros(jac.shape[1], jac.shape[1]).double() for name in PARTS}
    weights = torch.zeros(CLASSES, CLASSES).double()
    for c in range(CLASSES):
        members = [i for i in range(len(x)) if y[i] == c]
        means = {}
        for other in range(CLASSES):
            weights[c, other] = sum((w[i, other] for i in members), torch.tensor(0.0))
            if other != c and members:
                means[other] = sum(w[i, other] * g[i, other] for i in members) / weights[c, other]
        if members:
            mass = sum(weights[c, other] for other in means)
            mean = sum(weights[c, other] * means[other] for other in means) / mass
            made["between"] += mass * torch.outer(mean, mean)
        for other, d in means.items():
            made["cross"] += weights[c, other] * torch.outer(d - mean, d - mean)
            for i in members:
                made["within"] += w[i, other] * torch.outer(g[i, other] - d, g[i, other] - d)
        for i in members:
            made["same"] += w[i, c] * torch.outer(g[i, c], g[i, c])
    return made, weights


@pytest.mark.parametrize("sizes", [[23], [8, 8, 7], [1] * 23])
def test_parts_equal_their_definitions_and_add_up_to_the_matrix(sizes):
    """CHECKS F3: the identity to 1e-14, whatever the batches."""
    model, x, y = classifier()
    operator = hessian(model, split(x, y, sizes), "cross_entropy", kind="ggn")
    found = operator.class_decomposition()
    expected, weights = by_definition(model, x, y)
    whole = operator.dense()
    dense = {name: found.parts[name].dense() for name in PARTS}
    for name in PARTS:
        assert float(expected[name].abs().max()) > 1e-6
        assert torch.allclose(dense[name], expected[name], rtol=1e-11, atol=1e-15), name
    assert float((sum(dense.values()) - whole).abs().max()) < 1e-14 * max(1, float(whole.max()))
    assert np.allclose(found.weights, weights.numpy(), rtol=1e-12)
    assert found.weights.sum() == pytest.approx(1, rel=1e-12)


def test_class_weights_and_ignored_labels_count_as_in_the_loss():
    model, x, y = classifier()
    class_weights = torch.tensor([1.0, 3.0, 0.2, 0.7], dtype=torch.float64)
    expected, _ = by_definition(model, x[:20], y[:20], class_weights)
    y = torch.cat([y[:20], torch.full((3,), -100)])
    loss = nn.CrossEntropyLoss(weight=class_weights)
    found = hessian(model, split(x, y, 8), loss, kind="ggn").class_decomposition()
    for name in PARTS:
        assert torch.allclose(found.parts[name].dense(), expected[name], rtol=1e-11, atol=1e-15)


def test_ranks_are_those_of_means_of_classes():
    """CHECKS F3: C and C (C - 2) for C = 4; the eigenvalues of the Gram matrices are theirs."""
    model, x, y = classifier(60)
    found = hessian(model, [(x, y)], "cross_entropy", kind="ggn").class_decomposition()
    for name, rank, values in [
        ("between", 4, found.class_eigenvalues),
        ("cross", 8, found.cross_eigenvalues),
    ]:
        spectrum = np.linalg.eigvalsh(found.parts[name].dense().numpy())[::-1]
        assert (spectrum > 1e-13 * spectrum[0]).sum() == rank
        assert values == pytest.approx(spectrum[:rank], rel=1e-9)
    assert found.class_means.shape == (4, operator_size := len(found.parts["same"].dense()))
    assert found.cross_deviations.shape == (4, 4, operator_size)


def test_trained_networks_have_their_outliers_between_classes():
    """The largest eigenvalues of the digits network are near those of the class means."""
    model, (x, y), loss = lx.examples.digits()
    operator = hessian(model, [(x[:300], y[:300])], loss, kind="ggn")
    found = operator.class_decomposition()
    traces = found.traces(products=40)
    assert sum(float(traces[name].value) for name in PARTS) == pytest.approx(
        operator.trace(products=40).value, rel=0.2
    )
    top = operator.eigenvalues(1).values[0]
    assert found.class_eigenvalues[0] < top * (1 + 1e-6)
    assert len(found.class_eigenvalues) == 10
    assert len(found.cross_eigenvalues) == 80


def test_traces_of_the_parts():
    model, x, y = classifier()
    found = hessian(model, [(x, y)], "cross_entropy", kind="ggn").class_decomposition()
    expected, _ = by_definition(model, x, y)
    size = len(expected["same"])
    for name, estimate in found.traces(products=size).items():
        assert estimate.exact
        assert estimate.standard_error < 1e-12
        assert estimate.value == pytest.approx(float(expected[name].trace()), rel=1e-10)
    for name, estimate in found.traces(products=20).items():
        assert estimate.exact == (name in ("between", "cross"))
        distance = abs(estimate.value - float(expected[name].trace()))
        assert distance <= 6 * estimate.standard_error + 1e-10


def test_axes_are_eigenvectors_between_classes():
    model, x, y = classifier()
    objective = lx.Objective(model, [(x, y)], "cross_entropy")
    found = hessian(objective, kind="ggn").class_decomposition()
    directions = found.directions(3)
    assert torch.allclose(directions.norm(), torch.ones(3).double(), rtol=1e-10)
    between = found.parts["between"]
    for k, v in enumerate(directions.vectors):
        assert torch.allclose(between @ v, found.class_eigenvalues[k] * v, atol=1e-10)
    surface = lx.surface(objective, directions=found.directions(2), points=3, progress=False)
    assert surface.loss[1, 1] == pytest.approx(objective.loss())
    with pytest.raises(ArgumentError, match="`n` must be from 1 to 4, got 5"):
        found.directions(5)


def test_classes_without_samples_are_zero():
    model, x, y = classifier()
    y = y.clamp(max=2)
    operator = hessian(model, [(x, y)], "cross_entropy", kind="ggn")
    found = operator.class_decomposition()
    assert not found.class_means[3].any()
    assert not found.cross_deviations[3].any()
    assert found.weights[3].tolist() == [0, 0, 0, 0]
    whole = sum(found.parts[name].dense() for name in PARTS)
    assert torch.allclose(whole, operator.dense(), atol=1e-14)


def test_blocks_positions_and_log_probabilities():
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy", kind="ggn")
    block = operator.restrict("2.*").class_decomposition()
    whole = operator.class_decomposition()
    n = 5 * 6 + 6
    for name in PARTS:
        expected = whole.parts[name].dense()[n:, n:]
        assert torch.allclose(block.parts[name].dense(), expected, atol=1e-15)
    logs = nn.Sequential(model, nn.LogSoftmax(1))
    found = hessian(logs, [(x, y)], "nll_loss", kind="ggn").class_decomposition()
    assert torch.allclose(found.class_means, whole.class_means, atol=1e-14)
    # the same samples as positions of one image
    image = nn.Sequential(models_as_convolution(model))
    as_image = x.T[None, :, :, None]
    found = hessian(image, [(as_image, y[None, :, None])], "cross_entropy", kind="ggn")
    assert found.class_decomposition().class_eigenvalues == pytest.approx(
        whole.class_eigenvalues, rel=1e-10
    )


def models_as_convolution(model: nn.Sequential) -> nn.Module:
    """A network of linear layers, applied at every position."""
    layers: list[nn.Module] = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            conv = nn.Conv2d(layer.in_features, layer.out_features, 1).double()
            conv.load_state_dict({"weight": layer.weight[..., None, None], "bias": layer.bias})
            layers.append(conv)
        else:
            layers.append(layer)
    return nn.Sequential(*layers)


def in_float32(sizes):
    model, x, y = classifier()
    return hessian(
        model.float(), split(x.float(), y, sizes), "cross_entropy", kind="ggn"
    )  # fmt: skip


def test_the_callers_autocast_changes_no_bit():
    """Neither of what is averaged nor of products taken later."""
    operator = in_float32([16, 7])
    plain, vector = operator.class_decomposition(), torch.randn(operator.size)
    wanted = {name: part @ vector for name, part in plain.parts.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = in_float32([16, 7]).class_decomposition()
        for name in PARTS:
            assert torch.equal(plain.parts[name] @ vector, wanted[name]), name
            assert torch.equal(inside.parts[name] @ vector, wanted[name]), name
        axes = inside.directions(2).vectors
    assert torch.equal(inside.class_means, plain.class_means)
    assert torch.equal(inside.cross_deviations, plain.cross_deviations)
    assert np.array_equal(inside.weights, plain.weights)
    assert np.array_equal(inside.class_eigenvalues, plain.class_eigenvalues)
    assert axes.dtype == torch.float32
    assert torch.equal(axes, plain.directions(2).vectors)


def test_gradients_in_float32_are_averaged_in_float64():
    """Of 23 batches of one sample: their own gradients are all that is rounded."""
    model, x, y = classifier()
    model, x = model.float(), x.float()
    found = in_float32([1] * 23).class_decomposition()
    sums = torch.zeros(CLASSES, CLASSES, len(found.class_means[0])).double()
    mass = torch.zeros(CLASSES, CLASSES).double()
    for xi, c in zip(x, y, strict=True):
        output = model(xi[None])
        p = output.detach().softmax(1)
        for other in range(CLASSES):
            residual = p.clone()
            residual[0, other] -= 1
            pulled = torch.autograd.grad(
                output, model.parameters(), residual * p[0, other], retain_graph=True
            )
            sums[c, other] += torch.cat([g.reshape(-1) for g in pulled]).double() / 23
            mass[c, other] += p[0, other].double() / 23
    off = ~torch.eye(CLASSES, dtype=torch.bool)
    means = (sums * off[..., None]).sum(1) / (mass * off).sum(1, keepdim=True)
    assert torch.allclose(found.class_means, means, rtol=1e-12, atol=1e-15)
    expected = (sums / mass[..., None] - means[:, None]) * off[..., None]
    assert torch.allclose(found.cross_deviations, expected, rtol=1e-10, atol=1e-14)
    values = torch.linalg.eigvalsh(means.T * (mass * off).sum(1) @ means).flip(0)[:CLASSES]
    assert found.class_eigenvalues == pytest.approx(values.numpy(), rel=1e-10)


def test_weight_decay_is_left_out():
    model, x, y = classifier()
    decayed = lx.Objective(model, [(x, y)], "cross_entropy", weight_decay=1.0)
    found = hessian(decayed, kind="ggn").class_decomposition()
    plain = hessian(model, [(x, y)], "cross_entropy", kind="ggn").class_decomposition()
    for name in PARTS:
        assert torch.equal(found.parts[name].dense(), plain.parts[name].dense())


def test_result_is_short_in_print_and_cannot_be_written():
    model, x, y = classifier()
    found = hessian(model, [(x, y)], "cross_entropy", kind="ggn").class_decomposition()
    assert isinstance(found, ClassDecomposition)
    assert re.fullmatch(r"ClassDecomposition\(4 classes; between: .*, \.\.\.\)", repr(found))
    for array in (found.weights, found.class_eigenvalues, found.cross_eigenvalues):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_another_matrix_or_loss_is_refused():
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy")
    with pytest.raises(ArgumentError, match=r"`kind` must be 'ggn' .* got 'hessian'"):
        operator.class_decomposition()
    target = torch.rand(len(x), CLASSES, dtype=torch.float64).softmax(1)
    for data, loss in [((x, target), "cross_entropy"), ((x, target), "mse_loss")]:
        operator = hessian(model, [data], loss, kind="ggn")
        with pytest.raises(LossError, match=r"cross entropy .* with one class per label, got"):
            operator.class_decomposition()


def test_averaged_gradients_that_take_too_much_are_refused(monkeypatch):
    from landscapex.curvature import classes

    monkeypatch.setattr(classes, "_MOST", 10_000)
    model, x, y = classifier()
    operator = hessian(model, [(x, y)], "cross_entropy", kind="ggn")
    with pytest.raises(ArgumentError, match=r"averaged gradients must take at most .* got 4\^2 of"):
        operator.class_decomposition()
