"""Questions on surfaces: whose values, directions, means and manners are right."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import compare_models as known
import numpy as np
import torch
from compare_adapters import DRAWS, MEANS, PLANES, RANDOM, Call, Direction, Plane, Surface
from compare_cases import Case, Cells, Column, Entry, Value
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "tests"))

POINTS, SPAN = 5, 0.5
AXIS = np.linspace(-SPAN, SPAN, POINTS)
MIDDLE = POINTS // 2


def entries(calls: Sequence[Call], about: Callable[[Callable], Cells]) -> list[Entry]:
    """What a function finds out about each way."""
    return [Entry(c.tool, c.written, lambda c=c: about(c.run), c.option) for c in calls]


# --- A given plane -------------------------------------------------------------------------------

UNIT = [
    {"x": torch.ones(1), "y": torch.zeros(1)},
    {"x": torch.zeros(1), "y": torch.ones(1)},
]
WRONG, OFF, CENTRE = "wrong points of 25", "largest error", "loss at the model"


def plane_of(model: nn.Module) -> Plane:
    return Plane(model, known.any_batch(), known.Mean(), UNIT, AXIS)


def compare_plane(losses: Surface, axis: np.ndarray = AXIS) -> Cells:
    """With the quadratic at these coordinates."""
    right = known.bowl(0.6 + axis[:, None], 0.8 + axis)
    off = np.abs(losses - right) / np.ptp(right)
    return {
        WRONG: float((off > 1e-5).sum()),
        OFF: f"{100 * off.max():.0f} %" if off.max() > 1e-5 else "rounding",
        CENTRE: losses[MIDDLE, MIDDLE],
    }


def visited_by_landscaper() -> Cells:
    import other_tools

    landscaper = next(c for c in PLANES if c.tool == "landscaper")
    losses = landscaper.run(plane_of(known.Bowl()))
    return compare_plane(losses, other_tools.landscaper_steps(POINTS, SPAN))


def _plane_entries() -> list[Entry]:
    made = entries(PLANES, lambda run: compare_plane(run(plane_of(known.Bowl()))))
    at = next(i for i, e in enumerate(made) if e.tool == "landscaper")
    own = Entry("landscaper", made[at].call, visited_by_landscaper, "at the points it visits")
    return [*made[: at + 1], own, *made[at + 1 :]]


PLANE = Case(
    name="plane",
    title="A plane of which every value is known",
    about="The loss is x²/2 + 5y² + xy, the model is at (0.6, 0.8), and the plane is 5 x 5 points "
    "over [-0.5, 0.5] along x and y. Values are compared at the coordinates that a tool returns; "
    "loss-landscapes returns none and gets those that suit its even rows. Errors are in units of "
    "the range of the surface.",
    columns=[Column(WRONG, 0), Column(OFF), Column(CENTRE, 1e-5)],
    true=lambda: {WRONG: 0.0, OFF: "rounding", CENTRE: known.bowl(0.6, 0.8)},
    entries=_plane_entries(),
    notes={
        "loss-landscapes": "It walks over the grid to and fro, and every odd row is one step off.",
        "landscaper": "A point labelled 0.5 lies at 0.4: it steps by `2 * distance / steps`. At "
        "the points that it visits one value is wrong: it adds noise to the maximum.",
        "loss-landscape-3d": "Its README passes `model.state_dict()` as the centre, which moves "
        "with the model: each point starts where the one before ended.",
    },
)

# --- Points without a value ----------------------------------------------------------------------

NAN, INFINITE = "one corner", "the opposite corner"


def _word(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "NaN" if np.isnan(value) else "infinite"


def corners(losses: Surface) -> Cells:
    return {NAN: _word(losses[-1, -1]), INFINITE: _word(losses[0, 0])}


NOT_FINITE = Case(
    name="nan",
    title="Losses that are NaN or infinite",
    about="The same plane, but the loss is NaN at one corner, where the quadratic is highest, and "
    "infinite at the opposite one.",
    columns=[Column(NAN), Column(INFINITE)],
    true=lambda: {NAN: "NaN", INFINITE: "infinite"},
    entries=entries(
        [c for c in PLANES if c.tool != "loss-landscape-3d" or c.option],
        lambda run: corners(run(plane_of(known.Cliff()))),
    ),
    notes={
        "landscaper": "NaN becomes the mean of all values, infinity the largest one plus noise.",
    },
)

# --- Random planes -------------------------------------------------------------------------------

STEPS = "middle point off, in steps"


def middle(run: Callable[..., Surface]) -> Cells:
    """How far the middle of a plane is from the model, whose loss is its squared distance."""
    torch.manual_seed(0)
    losses = run(known.Distance(), known.any_batch(), known.Mean(), POINTS)
    # second differences of a quadratic along a row are its step squared, twice
    step = np.sqrt(np.abs(np.diff(losses, 2, axis=1)).mean() / 2)
    return {STEPS: float(np.sqrt(losses[MIDDLE, MIDDLE]) / step)}


MIDDLES = Case(
    name="middle",
    title="Is the model in the middle of a random plane?",
    about="The loss is the squared distance from the model, so it is 0 at the middle of a plane "
    "around it. 5 x 5 points, all else by default.",
    columns=[Column(STEPS, 0.01, digits=2)],
    true=lambda: {STEPS: 0.0},
    entries=entries([c for c in RANDOM if c.option != "of a copy"], middle),
    notes={
        "loss-landscapes": "It steps before it evaluates. For an even number of steps one of the "
        "points is the model.",
        "loss-landscape-3d": "The moving centre, as above.",
    },
)

# --- Random directions ---------------------------------------------------------------------------

COSINE, AGAIN = "cosine of the two", "cosine of two seeds"
FILTERS = "longest to shortest filter"
BIASES, BUFFERS = "biases and batch norm", "buffers that move"
FRESH = "fresh batch norm"
LEFT_OUT, RANDOMLY = "left out", "random"
SEEDS = range(5)

Draw = Callable[[nn.Module, int], Sequence[Direction]]


def _flat(direction: Direction, names: Sequence[str]) -> Tensor:
    return torch.cat([direction[name].double().reshape(-1) for name in names])


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def about_directions(draw: Draw) -> dict[str, Value | Callable[[], Value]]:
    """Means over five draws."""
    model = known.convolutional().eval()
    parameters = {name: p.detach().double() for name, p in model.named_parameters()}
    wide = [name for name, p in parameters.items() if p.ndim > 1]
    narrow = [name for name in parameters if name not in wide]
    drawn = [draw(model, seed) for seed in SEEDS]
    buffers = [n for n in drawn[0][0] if n not in parameters and drawn[0][0][n].any()]
    firsts = [_flat(first, wide) for first, _ in drawn]
    return {
        COSINE: float(np.mean([abs(_cosine(_flat(a, wide), _flat(b, wide))) for a, b in drawn])),
        AGAIN: float(np.mean([abs(_cosine(a, b)) for a, b in itertools.pairwise(firsts)])),
        FILTERS: float(np.mean([_spread(first, parameters, wide) for first, _ in drawn])),
        BIASES: _how_drawn([_flat(first, narrow) for first, _ in drawn]),
        BUFFERS: len(buffers),
        FRESH: lambda: _finite(draw(known.convolutional(fresh=True).eval(), 0)),
    }


def _spread(direction: Direction, parameters: Direction, names: Sequence[str]) -> float:
    """The longest filter over the shortest, in lengths of the model's own."""
    lengths = [
        direction[n].double().flatten(1).norm(dim=1) / parameters[n].flatten(1).norm(dim=1)
        for n in names
    ]
    return float(torch.cat(lengths).max() / torch.cat(lengths).min())


def _how_drawn(biases: Sequence[Tensor]) -> str:
    """Whether one draw differs from the next."""
    if not any(b.any() for b in biases):
        return LEFT_OUT
    cosine = np.mean([_cosine(a, b) for a, b in itertools.pairwise(biases)])
    return f"equal, cosine {cosine:.3f}" if cosine > 0.99 else RANDOMLY


def _finite(directions: Sequence[Direction]) -> str:
    finite = all(t.isfinite().all() for d in directions for t in d.values())
    return "drawn" if finite else "NaN"


class Biases(Column):
    """To leave biases out, or to draw them at random, is right alike."""

    def right(self, value: Value, true: Value) -> bool:
        return value in (LEFT_OUT, RANDOMLY)


DIRECTIONS = Case(
    name="directions",
    title="Random filter-normalised directions",
    about="Two directions for a network of a convolution, batch norm and a linear layer. Random "
    "ones are almost orthogonal here. After filter normalisation (Li et al. 2018, section 4) each "
    "filter is as long as the model's: in that unit the longest is as long as the shortest. Biases "
    "and batch norm are drawn too, or left out; running means and variances are no weights. Means "
    "of five draws. In the last column batch norm is as `nn.BatchNorm2d` makes it: its biases are "
    "0.",
    columns=[
        Column(COSINE, 0.1, digits=3),
        Column(AGAIN, 0.1, digits=3),
        Column(FILTERS, 1e-3, digits=3),
        Biases(BIASES),
        Column(BUFFERS, 0),
        Column(FRESH),
    ],
    true=lambda: {
        COSINE: 0.0,
        AGAIN: 0.0,
        FILTERS: 1.0,
        BIASES: "left out, or random",
        BUFFERS: 0.0,
        FRESH: "drawn",
    },
    entries=entries(DRAWS, about_directions),
    notes={
        "loss-landscapes": "It draws from [0, 1), so that first directions point one way whatever "
        "the seed; a bias becomes its own absolute value, whatever was drawn; it divides by the "
        "zeros of a fresh batch norm.",
        "landscaper": "It subtracts a projection without dividing by the squared length, which "
        "makes the second direction a multiple of the first; it scales tensors, not filters.",
        "losscape": "It scales tensors, not filters.",
        "loss-landscape-3d": "Running means and variances are moved with the weights, which can "
        "make a variance negative.",
    },
)

# --- Means ---------------------------------------------------------------------------------------

MEAN = Case(
    name="mean",
    title="The mean loss over uneven batches",
    about="The cross entropy of a linear layer on ten samples: in batches of 8 and 2, and in two "
    "of 5 with 4 labels of -100, which torch leaves out. True is the mean over all labels that "
    "count, as of one large batch. loss-landscapes takes no batches: it gets all samples at once.",
    columns=[Column(name, 1e-5, digits=5) for name in known.SPLITS],
    true=lambda: {name: make().loss() for name, make in known.SPLITS.items()},
    entries=entries(
        MEANS,
        lambda run: {n: lambda make=make: run(make()) for n, make in known.SPLITS.items()},
    ),
    notes={
        "losscape": "The mean of the means of batches; of the first 8 batches by default.",
        "loss-landscape-3d": "Batches weigh by their size, not by the labels that count.",
    },
    absent="landscaper calls a function of its user, whose mean is not its own.",
)

# --- What is left behind -------------------------------------------------------------------------

WEIGHTS, MOVED, MODE, GENERATOR = "weights changed", "buffers changed", "mode", "torch's generator"


def left_behind(compute: Callable[[nn.Module], object]) -> Cells:
    """What differs in a model that was in training mode, after it was looked at."""
    model = known.convolutional(dropout=0.3).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    compute(model)
    after, names = model.state_dict(), dict(model.named_parameters())
    changed = {name: float((after[name] != t).double().mean()) for name, t in before.items()}
    size = sum(p.numel() for p in names.values())
    share = sum(changed[name] * p.numel() for name, p in names.items()) / size
    return {
        WEIGHTS: f"{100 * share:.0f} %",
        MOVED: sum(bool(changed[name]) for name in before if name not in names),
        MODE: "training" if all(m.training for m in model.modules()) else "evaluation",
        GENERATOR: "as before" if torch.equal(state, torch.get_rng_state()) else "moved",
    }


LEFT_COLUMNS = [Column(WEIGHTS), Column(MOVED, 0), Column(MODE), Column(GENERATOR)]
UNTOUCHED: Cells = {WEIGHTS: "0 %", MOVED: 0.0, MODE: "training", GENERATOR: "as before"}

LEFT = Case(
    name="left",
    title="The model after its surface",
    about="A network with batch norm and dropout, in training mode as a training loop leaves it. "
    "After a random plane of 5 x 5 points its weights, buffers and mode should be what they were, "
    "bit for bit, and so should torch's global generator, or training goes on differently.",
    columns=LEFT_COLUMNS,
    true=lambda: UNTOUCHED,
    entries=entries(
        RANDOM,
        lambda run: left_behind(lambda m: run(m, known.images(), nn.CrossEntropyLoss(), POINTS)),
    ),
    notes={
        "loss-landscapes": "It leaves the model where its walk ended, unless told to copy it.",
        "landscaper": "It evaluates in the mode that it finds, so batch norm learns and dropout "
        "drops at every point.",
        "losscape": "The same.",
    },
)

CASES = [PLANE, MIDDLES, DIRECTIONS, NOT_FINITE, MEAN, LEFT]
