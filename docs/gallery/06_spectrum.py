"""
The eigenvalues of the Hessian
==============================

All 14,490 of them as a distribution, and the largest one by one: a bulk at zero, and outliers.
"""

# %%
# An operator stands for the Hessian: it is never formed, only multiplied with vectors, over all
# data. The largest eigenvalues come from Lanczos, each with its residual.

import landscapex as lx

data, loss = lx.examples.digits()[1:]
model = lx.examples.train_digits(seed=0)
hessian = lx.hessian(model, data, loss)
top = hessian.eigenvalues(k=12)
print(top)

# %%
# The distribution of all eigenvalues is an estimate from a few random vectors. The lines mark the
# eigenvalues of above.

density = hessian.spectral_density(probes=6, steps=60)
density.plot(top)

# %%
# **What is seen.** Above, the density on a logarithmic scale: nearly everything lies close to
# zero, and a few eigenvalues far to the right. The dotted line is the height that one single
# eigenvalue has; what reaches no further than that is one. Below, the share of the eigenvalues
# below each place, with the band in which the truth lies with 95 % probability.
#
# **What it means.** In nearly all directions the loss is flat; in a handful it is steep. The
# estimate says how many, if it is asked in a gap of the spectrum:

print("above 4:", density.outliers(4.0))

# %%
# **What it does not mean.** Sixty steps do not resolve how the bulk is distributed near zero: the
# bumps of the curve there are not eigenvalues, and the band is wide. Some eigenvalues are negative,
# so that the trained weights are not a minimum of this loss (they were trained with weight decay,
# which is not part of it); how many, this estimate cannot say:

band = density.band([-0.005])
print(f"share below -0.005: {band.value[0]:.3f}, from {band.lower[0]:.3f} to {band.upper[0]:.3f}")

# %%
# Nor is a large eigenvalue a property of the function that the network computes: it changes when
# layers are rescaled (see :doc:`09_sharpness`).
#
# Where do the outliers come from? For a classifier, the Gauss-Newton part of the Hessian falls
# apart exactly into what lies between the classes, between pairs of classes, within them, and a
# rest. With ten classes the first part has at most ten eigenvalues.

parts = lx.hessian(model, data, loss, kind="ggn").class_decomposition()
print("outliers of the Hessian:  ", top.values.round(1))
print("between classes, alone:   ", parts.class_eigenvalues.round(1))
for name, value in parts.traces().items():
    print(f"trace of {name:8} {value}")

# %%
# The differences between classes have a handful of large eigenvalues too; together with those
# between pairs of classes ("cross") they make most of the trace. What single images add within
# their class is less.
#
# Sources: Ghorbani, Krishnan, Xiao, "An Investigation into Neural Net Optimization via Hessian
# Eigenvalue Density", ICML 2019, figure 1; Papyan, "Traces of class/cross-class structure pervade
# deep learning spectra", JMLR 21, 2020 (classes).
