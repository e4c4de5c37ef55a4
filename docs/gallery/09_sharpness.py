"""
A table of sharpness
====================

Nine measures of how sharp a minimum is, on two networks that compute the same function,
and on a third.
"""

# %%
# The second network is the first one with its first layer multiplied by ten and the next divided
# by ten. A ReLU lets such factors pass: for every input, both give the same output. The third has
# the same architecture and was trained from other random weights.

import copy

import torch

import landscapex as lx

data, loss = lx.examples.digits()[1:]
test = lx.examples.digits_test()
first = lx.examples.train_digits(seed=0)
rescaled = copy.deepcopy(first)
with torch.no_grad():
    rescaled[0].weight *= 10
    rescaled[0].bias *= 10
    rescaled[2].weight /= 10
other = lx.examples.train_digits(seed=1)

measures = {
    "SAM": lambda f: lx.sharpness.sam(f, rho=0.05),
    "SAM, 64 samples each": lambda f: lx.sharpness.m_sharpness(f, 64, rho=0.05),
    "mean, noise 0.01": lambda f: lx.sharpness.average_case(f, sigma=0.01, samples=20),
    "in a box (Keskar)": lambda f: lx.sharpness.keskar(f, epsilon=5e-4),
    "noise borne (PAC-Bayes)": lambda f: lx.sharpness.pac_bayes(f),
    "ASAM": lambda f: lx.sharpness.asam(f, rho=0.5),
    "mean, adaptive noise": lambda f: lx.sharpness.average_case(f, 0.05, 20, adaptive=True),
    "Fisher-Rao": lambda f: lx.sharpness.fisher_rao(f),
    "relative flatness": lambda f: lx.sharpness.relative_flatness(f, "16"),
}
objectives = [
    lx.Objective(model, data, loss, metrics="error", datasets={"test": test})
    for model in (first, rescaled, other)
]
print(f"{'':24}{'first':>18}{'rescaled':>18}{'other':>18}")
for column in ("loss", "test_loss", "test_error"):
    values = "".join(f"{f.evaluate()[column]:18.4f}" for f in objectives)
    print(f"{column:24}{values}")
for name, measure in measures.items():
    cells = []
    for objective in objectives:
        found = measure(objective)
        error = "" if found.standard_error is None else f" ± {found.standard_error:.1g}"
        cells.append(f"{found.value:.4g}{error}")
    print(f"{name:24}" + "".join(f"{cell:>18}" for cell in cells))

# %%
# **What is seen.** Losses and errors of the first two networks agree, as they must. The first five
# measures do not: for them the rescaled network is much sharper, or flatter. The last four agree.
# Estimates have their standard error beside them.
#
# **What it means.** A measure that tells two equal functions apart is not a property of the
# function. It may be compared along one training run or between networks trained alike, with the
# scales of their layers in mind. ASAM, adaptive noise and the Fisher-Rao norm weigh every
# parameter by its own size and do not change; the relative flatness of the last layer does not see
# what was done to the layers before.
#
# **What it does not mean.** That an invariant measure predicts how well a network generalises. The
# third column has other values; whether the network with the smaller one has the smaller test
# error can be read off the table, and one pair of networks proves nothing either way. On many
# networks, the relation is weak.
#
# The same in a picture: along an unnormalised random direction the rescaled network has a much
# narrower minimum; filter-normalised, both lines are the same.


def line(objective, normalize, span):
    """Along the same draw of a direction."""
    direction = lx.directions.random(objective, 1, seed=0, normalize=normalize)
    return lx.line(objective, directions=direction, span=span, points=41, progress=False)


labels = ["first", "rescaled"]
lines = [line(objective, None, 0.1) for objective in objectives[:2]]
lx.plot.line(*lines, labels=labels, title="Not normalised")

# %%
lines = [line(objective, "filter", 1.0) for objective in objectives[:2]]
lx.plot.line(*lines, labels=labels, title="Filter-normalised")

# %%
# Sources: Dinh, Pascanu, Bengio, Bengio, "Sharp Minima Can Generalize For Deep Nets", ICML 2017
# (rescaling); Andriushchenko, Croce, Müller, Hein, Flammarion, "A Modern Look at the Relationship
# between Sharpness and Generalization", ICML 2023. Every function of `sharpness` names its own.
