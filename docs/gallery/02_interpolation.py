"""
Between two trained networks
============================

The loss on the straight line from one minimum to another: how high the barrier is.
"""

# %%
# Two networks of the same architecture, trained on the same data from different random weights.
# The line between them moves every weight evenly from its value in the first to its value in the
# second.

import landscapex as lx

data, loss = lx.examples.digits()[1:]
first = lx.examples.train_digits(seed=0)
second = lx.examples.train_digits(seed=1)
objective = lx.Objective(
    first, data, loss, metrics="error", datasets={"test": lx.examples.digits_test()}
)
way = lx.interpolate(first, second, model=objective, points=81, progress=False)
print(f"barrier {way.barrier:.2f}, of the test loss {way.measures('test_loss').barrier:.2f}")

# %%
# The panels below are the ends of the panel above, drawn as high as they are there. On the scale
# of the barrier, little of what happens near the minima would be seen.

lx.plot.interpolation(way, column=["loss", "test_loss"])

# %%
# The part of the images that are misclassified, on the same way:

lx.plot.line(way, column=["error", "test_error"])

# %%
# **What is seen.** A wall: half way between two networks that are right on (almost) all of their
# images, the loss is that of guessing, ln 10 = 2.3, and nine of ten images are misclassified.
#
# **What it means.** On the straight line, these two solutions do not belong to one basin. The
# barrier is the largest height of the curve above the chord between its ends (dotted). The closer
# look shows that the test loss even falls a little when either network is left: its minimum is not
# that of the training loss.
#
# **What it does not mean.** That there is no low way between them: curved ones usually exist. Nor
# that the two networks compute different things: hidden units can be exchanged without any effect
# on the output, and the same network with its units in another order looks just as far away on
# this line.
#
# From untrained to trained weights there is no such wall; the next page looks at such lines.

untrained = lx.examples.train_digits(seed=0, epochs=0)
training = lx.interpolate(untrained, first, model=objective, points=81, progress=False)
print("falls all the way:", training.monotone)

# %%
# Sources: Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
# problems", ICLR 2015, section 3; Entezari, Sedghi, Saukh, Neyshabur, "The Role of Permutation
# Invariance in Linear Mode Connectivity of Neural Networks", ICLR 2022, section 2 (barrier).
