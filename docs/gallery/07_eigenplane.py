"""
The plane of two eigenvectors
=============================

Random planes hide the directions in which the loss bends most, and those in which it bends down.
Eigenvectors of the Hessian are these directions.
"""

# %%
# Both ends of the spectrum come from one search.

import landscapex as lx

data, loss = lx.examples.digits()[1:]
model = lx.examples.train_digits(seed=0)
objective = lx.Objective(model, data, loss)
hessian = lx.hessian(objective)
ends = hessian.eigenvalues(k=4, which="BE", tol=1e-4)
print(ends)

# %%
# The plane of the largest and the smallest eigenvalue. Each axis is as long as its curvature asks
# for: to where the quadratic term alone would change the loss by as much as it is (by 0.1 at
# least). Mind the scales: a step along the one is worth thirty along the other.

axes = ends.directions(hessian, pick=[-1, 0])
plane = lx.surface(objective, directions=axes, points=41, progress=False)
plane.plot()

# %%
plane.plot3d()

# %%
# **What is seen.** A narrow, bent valley: steep from left to right, long and flat along the
# vertical axis, along which the curvature at the centre is slightly negative.
#
# **What it means.** A step that is harmless along most directions is far too long along the first
# eigenvector; it is what limits the learning rate. The negative eigenvalue says that the centre is
# not a minimum, but the picture shows how little there is to gain: the loss soon rises again on
# either side.
#
# **What it does not mean.** The eigenvalues hold at the centre only. Already at the edge of the
# picture the valley has turned, and another direction is the steepest there. Nor do the two
# eigenvectors stand for the other 14,488 directions.
#
# With the eigenvectors of the two largest eigenvalues the basin is steep in both directions; their
# search is part of the call:

steep = lx.surface(objective, directions="hessian", points=41, progress=False)
steep.plot()

# %%
# Source: Böttcher, Wheeler, "Visualizing high-dimensional loss landscapes with Hessian
# directions", arXiv 2208.13219.
