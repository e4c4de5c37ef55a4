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
# estimate says how many:

print("above 4:", density.outliers(4.0))
print("below -0.005:", density.outliers(-0.005, side="below"))

# %%
# Some eigenvalues are negative: the trained weights are not a minimum of this loss. (They were
# trained with weight decay, which is not part of it.)
#
# **What it does not mean.** The band is wide around zero: sixty steps do not resolve how the bulk
# is distributed there, and the bumps of the curve near zero are not eigenvalues. The smoothing is
# stated below the picture. Nor is a large eigenvalue a property of the function that the network
# computes: it changes when layers are rescaled (see :doc:`09_sharpness`).
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
