"""
A map of the curvature
======================

How convex is the loss around a solution? The smallest and the largest eigenvalue of the Hessian
at every point of a plane.
"""

# %%
# An eigenvalue costs tens of products of the Hessian with a vector at every point, so that maps
# are coarse, and often of a part of the data: here, of 256 images. The map is the truth about the
# loss on these images.

import landscapex as lx

(inputs, labels), loss = lx.examples.digits()[1:]
model = lx.examples.train_digits(seed=0)
sample = (inputs[:256], labels[:256])
found = lx.curvature_map(model, sample, loss, points=11, seed=1, progress=False)
lx.plot.curvature_map(found)

# %%
# **What is seen.** The plane of :doc:`01_surface` (the same random directions), its loss, both
# eigenvalues, and the size of the smallest relative to the largest. Blue is negative.
#
# **What it means.** At the solution the negative curvature is less than a hundredth of the
# positive one: nearly convex, in all directions of the network, not only in those of the picture.
# Further out it is a tenth of it and more. What looks convex in a random plane need not be: the
# basin in the plane bends upwards, and the smallest eigenvalue is negative at every point.
#
# **What it does not mean.** Only the two ends of the spectrum are shown; how many directions bend
# downwards is not (see :doc:`06_spectrum`). The ratio does not depend on the scale of the loss,
# but it does on the samples: on fewer of them the largest eigenvalue tends to be larger.
#
# Every eigenvalue has a residual, and a flag that says whether the search has converged there.

print("converged at", int(found["converged"].sum()), "of", found["converged"].size, "points")
print("largest residual relative to the largest eigenvalue:", end=" ")
print(f"{(found['smallest_residual'] / found['largest']).max():.0e}")

# %%
# Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets",
# NeurIPS 2018, section 6 and figure 7.
