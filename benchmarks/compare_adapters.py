"""Surfaces by each tool: its own functions, called as its documentation calls them.

Functions import their tool when they are called: one that is missing is missed by its own alone.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare_cases import OURS
from compare_models import Batches, Split
from torch import Tensor, nn
from torch.nn import functional as F

import landscapex as lx

sys.path.append(str(Path(__file__).parents[1] / "tests"))

Surface = np.ndarray
Direction = Mapping[str, Tensor]


@dataclass(frozen=True)
class Call:
    """A way of one tool to do what is asked of all.

    Attributes:
        tool: Its name.
        written: The call, as its user writes it.
        run: The same, for our models.
        option: What tells it from the tool's other ways.
    """

    tool: str
    written: str
    run: Callable[..., Any]
    option: str = ""


@contextlib.contextmanager
def silence() -> Iterator[str]:
    """Swallow prints and bars; give a folder for the pictures that losscape always draws."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        tempfile.TemporaryDirectory() as folder,
    ):
        yield folder


# --- A given plane -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plane:
    """Losses at ``axis x axis`` along two directions are asked for; `axis` is ``(-s, ..., s)``."""

    model: nn.Module
    batches: Batches
    loss: nn.Module
    directions: Sequence[Direction]
    axis: np.ndarray

    def of(self, module: nn.Module) -> float:
        """The loss on the first batch, for those who leave batches to their user."""
        inputs, targets = self.batches[0]
        return self.loss(module(inputs), targets).item()


def landscapex_plane(plane: Plane) -> Surface:
    return lx.surface(
        plane.model, plane.batches, plane.loss, directions=plane.directions,
        span=(plane.axis[0], plane.axis[-1]), points=len(plane.axis), progress=False,
    ).loss  # fmt: skip


def loss_landscapes_plane(plane: Plane) -> Surface:
    import other_tools

    axes = (plane.axis, plane.axis)
    return other_tools.loss_landscapes_surface(plane.model, plane.directions, axes, plane.of)


def landscaper_plane(plane: Plane) -> Surface:
    import other_tools

    np.random.seed(0)  # noqa: NPY002  (it draws from the global generator)
    return other_tools.landscaper_surface(
        plane.model, plane.directions, len(plane.axis), plane.axis[-1], plane.of
    )[0]


def losscape_plane(plane: Plane) -> Surface:
    from losscape.create_landscape import create_3D_losscape

    low, high = plane.axis[0], plane.axis[-1]
    with silence() as folder:
        _, _, losses = create_3D_losscape(
            plane.model, plane.batches, criterion=plane.loss, num_batches=len(plane.batches),
            directions=[list(d.values()) for d in plane.directions],
            num_points=len(plane.axis), x_min=low, x_max=high, y_min=low, y_max=high,
            save_only=True, output_h5=False, output_path=folder,
        )  # fmt: skip
    return losses.T  # [y, x], as the coordinates that it returns


def loss_landscape_3d_plane(
    plane: Plane, state: Callable[[nn.Module], dict[str, Tensor]] = nn.Module.state_dict
) -> Surface:
    from loss_landscape_3d import LossLandscapeCalculator

    calculator = LossLandscapeCalculator(plane.model, plane.batches, plane.loss)
    centre = state(plane.model)
    return calculator.calculate(plane.axis, plane.axis, *plane.directions, center_state=centre)


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def loss_landscape_3d_plane_of_copy(plane: Plane) -> Surface:
    return loss_landscape_3d_plane(plane, copied_state)


COPIED = "with a copied state"
PLANES = [
    Call(
        OURS,
        "lx.surface(model, data, loss, directions=[d1, d2], span=0.5, points=5)",
        landscapex_plane,
    ),
    Call(
        "loss-landscapes",
        "planar_interpolation(corner, end_1, end_2, metric, steps=5)",
        loss_landscapes_plane,
    ),
    Call(
        "landscaper",
        "LossLandscape.compute(model, data, [d1, d2], f, steps=5, distance=0.5, dim=2)",
        landscaper_plane,
    ),
    Call(
        "losscape",
        "create_3D_losscape(model, data, directions=[d1, d2], num_points=5, x_min=-0.5, ...)",
        losscape_plane,
    ),
    Call(
        "loss-landscape-3d",
        "calculator.calculate(x, y, d1, d2, center_state=model.state_dict())",
        loss_landscape_3d_plane,
    ),
    Call(
        "loss-landscape-3d",
        "calculator.calculate(x, y, d1, d2, center_state=deepcopy(model.state_dict()))",
        loss_landscape_3d_plane_of_copy,
        COPIED,
    ),
]

# --- Random planes -------------------------------------------------------------------------------


def landscapex_random(model: nn.Module, batches: Batches, loss: nn.Module, points: int) -> Surface:
    return lx.surface(model, batches, loss, points=points, progress=False).loss


def loss_landscapes_random(
    model: nn.Module, batches: Batches, loss: nn.Module, points: int, **options: object
) -> Surface:
    import other_tools

    metric = other_tools.loss_landscapes_metrics.Loss(loss, *batches[0])
    return other_tools.loss_landscapes.random_plane(model, metric, steps=points, **options)


def loss_landscapes_random_copied(
    model: nn.Module, batches: Batches, loss: nn.Module, points: int
) -> Surface:
    return loss_landscapes_random(model, batches, loss, points, deepcopy_model=True)


def landscaper_random(model: nn.Module, batches: Batches, loss: nn.Module, points: int) -> Surface:
    import other_tools

    ((inputs, targets),) = batches
    drawn = other_tools.landscaper_utils.generate_random_orthogonal_directions(model, 2)
    with silence():
        return other_tools.landscaper_compute.compute_loss_landscape(
            model, None, drawn, lambda module, _: loss(module(inputs), targets).item(),
            steps=points, dim=2, device="cpu",
        )[0]  # fmt: skip


def losscape_random(model: nn.Module, batches: Batches, loss: nn.Module, points: int) -> Surface:
    from losscape.create_landscape import create_3D_losscape

    with silence() as folder:
        return create_3D_losscape(
            model, batches, criterion=loss, num_points=points,
            save_only=True, output_h5=False, output_path=folder,
        )[2]  # fmt: skip


def loss_landscape_3d_random(
    model: nn.Module, batches: Batches, loss: nn.Module, points: int
) -> Surface:
    from loss_landscape_3d import generate_random_directions

    drawn = generate_random_directions(model, normalize=True)
    return loss_landscape_3d_plane(Plane(model, batches, loss, drawn, np.linspace(-1, 1, points)))


RANDOM = [
    Call(OURS, "lx.surface(model, data, loss, points=5)", landscapex_random),
    Call("loss-landscapes", "random_plane(model, Loss(f, x, y), steps=5)", loss_landscapes_random),
    Call(
        "loss-landscapes",
        "random_plane(model, Loss(f, x, y), steps=5, deepcopy_model=True)",
        loss_landscapes_random_copied,
        "of a copy",
    ),
    Call(
        "landscaper",
        "LossLandscape.compute(model, data, generate_random_orthogonal_directions(model, 2), ...)",
        landscaper_random,
    ),
    Call("losscape", "create_3D_losscape(model, data, num_points=5)", losscape_random),
    Call(
        "loss-landscape-3d",
        "calculator.calculate(x, y, *generate_random_directions(model), model.state_dict())",
        loss_landscape_3d_random,
    ),
]

# --- Random directions ---------------------------------------------------------------------------


def landscapex_draw(model: nn.Module, seed: int) -> Sequence[Direction]:
    drawn = lx.directions.random(model, 2, seed=seed)
    return [drawn[0], drawn[1]]


def loss_landscapes_draw(model: nn.Module, seed: int) -> Sequence[Direction]:
    """What it walks along: it returns no directions."""
    import other_tools

    seen: list[dict[str, Tensor]] = []

    def noted(module: nn.Module) -> float:
        seen.append({name: p.detach().clone() for name, p in module.named_parameters()})
        return 0.0

    torch.manual_seed(seed)
    metric = other_tools.Function(noted)
    other_tools.loss_landscapes.random_plane(copy.deepcopy(model), metric, steps=2)
    # in the order of its walk: (0, 1), (0, 2), (1, 1), (1, 0)
    return [{name: seen[i][name] - seen[0][name] for name in seen[0]} for i in (2, 1)]


def landscaper_draw(model: nn.Module, seed: int) -> Sequence[Direction]:
    """As its surfaces scale them."""
    import other_tools

    torch.manual_seed(seed)
    drawn = other_tools.landscaper_utils.generate_random_orthogonal_directions(model, 2)
    return other_tools.landscaper_directions(model, [named(model, d) for d in drawn])


def losscape_draw(model: nn.Module, seed: int) -> Sequence[Direction]:
    from losscape.create_directions import create_random_directions

    torch.manual_seed(seed)
    return [named(model, d) for d in create_random_directions(model)]


def loss_landscape_3d_draw(model: nn.Module, seed: int) -> Sequence[Direction]:
    from loss_landscape_3d import generate_random_directions

    torch.manual_seed(seed)
    return generate_random_directions(model, normalize=True)


def named(model: nn.Module, tensors: Sequence[Tensor]) -> Direction:
    return {name: t for (name, _), t in zip(model.named_parameters(), tensors, strict=True)}


DRAWS = [
    Call(OURS, "lx.directions.random(model, 2)", landscapex_draw),
    Call("loss-landscapes", "random_plane(model, metric, steps=2)", loss_landscapes_draw),
    Call("landscaper", "generate_random_orthogonal_directions(model, 2)", landscaper_draw),
    Call("losscape", "create_random_directions(model)", losscape_draw),
    Call("loss-landscape-3d", "generate_random_directions(model)", loss_landscape_3d_draw),
]

# --- The mean over batches -----------------------------------------------------------------------


def landscapex_mean(split: Split) -> float:
    surface = lx.line(split.model(), split.batches, "cross_entropy", points=3, progress=False)
    return surface.loss[1]


def loss_landscapes_mean(split: Split) -> float:
    import other_tools

    metric = other_tools.loss_landscapes_metrics.Loss(F.cross_entropy, split.x, split.y)
    return other_tools.loss_landscapes.point(split.model(), metric)


def losscape_mean(split: Split) -> float:
    from losscape.create_landscape import create_2D_losscape

    with silence() as folder:
        _, losses = create_2D_losscape(
            split.model(), split.batches, num_points=3, save_only=True, output_path=folder
        )
    return losses[1]


def loss_landscape_3d_mean(split: Split) -> float:
    from loss_landscape_3d import LossLandscapeCalculator

    model = split.model()
    state = copied_state(model)
    calculator = LossLandscapeCalculator(model, split.batches, nn.CrossEntropyLoss())
    return calculator.calculate_1d_path([0.0], state, state)[0]


MEANS = [
    Call(OURS, 'lx.line(model, data, "cross_entropy", points=3)', landscapex_mean),
    Call("loss-landscapes", "point(model, Loss(F.cross_entropy, x, y))", loss_landscapes_mean),
    Call("losscape", "create_2D_losscape(model, data, num_points=3)", losscape_mean),
    Call(
        "loss-landscape-3d",
        "LossLandscapeCalculator(model, data, CrossEntropyLoss()).calculate_1d_path(...)",
        loss_landscape_3d_mean,
    ),
]
