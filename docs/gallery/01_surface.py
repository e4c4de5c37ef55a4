"""
A surface and its relief
========================

The loss of a deep network over a random plane through its trained weights.
"""

# %%
# Eight hidden layers of 40 units, no skip connections, trained here on the digits. `train_digits`
# takes a seed, so that the same page gives the same picture.

import landscapex as lx

data, loss = lx.examples.digits()[1:]
model = lx.examples.train_digits(seed=0)
surface = lx.surface(model, data, loss, points=41, seed=1, progress=False)
print(surface)

# %%
# Contours
# --------
# The cross marks the trained weights. Both axes are random directions in which every filter was
# scaled to the length of the same filter of the model: at 1, every filter has moved by as much as
# it is long. The colours are logarithmic, which the colour bar says; the loss spans several powers
# of ten.

surface.plot()

# %%
# The same numbers as a relief, from the same result; nothing is computed again.

surface.plot3d()

# %%
# **What is seen.** A basin around the trained weights. Near the centre the level lines are ovals;
# further out they are bent, and the loss is not convex there.
#
# **What it means.** Along these two directions the loss stays low up to about a quarter of the
# length of the weights, and rises by orders of magnitude from there. Because filters were scaled,
# the picture does not change when one layer is multiplied by ten and the next divided by ten,
# which leaves the function of the network as it is; without the scaling it would.
#
# **What it does not mean.** Two directions of 14,490 are shown. A basin in a random plane does not
# prove a minimum: directions of negative curvature are few, and a random plane hardly contains
# them (see :doc:`07_eigenplane`). Nor does a wide basin prove that the network is right on other
# data.
#
# Is it the draw? Another seed is another plane, and shared colours and levels show what both have
# in common.

other = lx.surface(model, data, loss, points=41, seed=2, progress=False)
lx.plot.compare(surface, other, labels=["seed 1", "seed 2"])

# %%
# Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
# NeurIPS 2018, section 4 (filter normalisation) and figure 1 (relief).
