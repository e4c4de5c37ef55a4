"""
Leaving a saddle
================

Why training stands still at first, when it begins near zero: gradient descent near a saddle, in
closed form.
"""

# %%
# A linear network of two layers. With all weights zero its gradient is zero, and the Hessian says
# what kind of point that is.

import numpy as np
import torch
from torch import nn

import landscapex as lx

(inputs, labels), _ = lx.examples.digits()[1:]
data = inputs.double(), nn.functional.one_hot(labels).double()
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 10, bias=False), nn.Linear(10, 10, bias=False)).double()
objective = lx.Objective(model, data, "mse_loss")
zero = torch.zeros(740, dtype=torch.float64)
at_zero = lx.hessian(objective, center=zero)
ends = at_zero.eigenvalues(k=2, which="BE")
print(lx.criticality.classify_critical_point(at_zero.gradient, ends))

# %%
# Training begins at small random weights, near this saddle. The path of gradient descent with
# small steps on the quadratic model of the loss is known in closed form. Shown is the plane of the
# most negative and the most positive curvature.

with torch.no_grad():
    for p in model.parameters():
        p.mul_(0.01)
hessian = lx.hessian(objective)
flow = lx.criticality.gradient_flow(
    hessian.gradient, hessian, hessian.eigenvalues(k=2, which="BE"), loss=hessian.loss
)
flow.plot()

# %%
# **What is seen.** The path first falls towards the saddle, along the direction of positive
# curvature, then turns and leaves along the negative one. The dots are equally spaced in time: the
# way to the saddle is slowed down, the way out is speeded up.
#
# **What it means.** The time near a saddle grows with the logarithm of how close the path comes to
# it. A direction of negative curvature is left behind after

escape = flow.escape_times(0.5, learning_rate=1.0)
print(f"the first of {len(escape.times)} ways down: after {min(escape.steps):.0f} steps of 1")

# %%
# The closed form is that of the quadratic model, so it must be held beside the network itself.
# Here both take steps of 1:

losses, states = [], []
for _ in range(121):
    states.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone())
    losses.append(objective.loss())
    gradient = objective.gradient()
    with torch.no_grad():
        nn.utils.vector_to_parameters(states[-1] - gradient, model.parameters())
steps = np.arange(0, 36, 5)
model_losses = flow.model_loss(flow.descent_coordinates(steps, learning_rate=1.0))
print(f"{'step':>5}{'network':>12}{'model':>12}")
for step, predicted in zip(steps, model_losses, strict=True):
    print(f"{step:5}{losses[step]:12.4f}{predicted:12.4f}")

# %%
# **What it does not mean.** The agreement ends where the path has left the neighbourhood of the
# saddle: the model falls without limit, the network does not. Nor does a plateau of the loss alone
# prove a saddle. The length of the gradient tells more: near a critical point it is small, and it
# grows when the path leaves. This network goes from one saddle to the next:

kept = range(0, 121, 4)
history = lx.criticality.gradient_history(objective, [states[k] for k in kept], list(kept))
history.plot()

# %%
# Sources: Goodfellow, Vinyals, Saxe, "Qualitatively characterizing neural network optimization
# problems", ICLR 2015, appendix; Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear
# dynamics of learning in deep linear neural networks", ICLR 2014; Dauphin et al., "Identifying and
# attacking the saddle point problem in high-dimensional non-convex optimization", NeurIPS 2014.
