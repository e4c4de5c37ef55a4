"""The command ``landscapex``.

torch, and everything that needs it, is imported inside the commands, so that ``--help`` is quick.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from landscapex.errors import (
    ArgumentError,
    ArgumentTypeError,
    CorruptFileError,
    LandscapexError,
    LandscapexWarning,
    ResumeMismatchError,
    Terminated,
    TimeLimitWarning,
)
from landscapex.grids.ranks import claim_device, this_rank

if TYPE_CHECKING:
    from landscapex.grids.results import Surface

app = typer.Typer(
    help="Loss landscapes of PyTorch models: lines, surfaces and volumes of the loss.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


class BatchNorm(StrEnum):
    """What batch norm does at each point."""

    EVAL = "eval"
    RECOMPUTE = "recompute"
    BATCH = "batch"


class Picture(StrEnum):
    """How a result is drawn."""

    CONTOUR = "contour"
    SURFACE = "3d"
    LINE = "line"


def main() -> None:
    """Run the command line and exit.

    The exit status is 0, 1 after an error (one line for those of landscapex, a traceback for those
    of the user's own code), 2 for wrong usage, 75 at the time limit, 130 after Ctrl-C and 143 after
    SIGTERM. Under torchrun it is 0 at the time limit: torchrun stops all other processes, and may
    start everything again, when one reports anything else.
    """
    default, warnings.formatwarning = warnings.formatwarning, _format_warning
    try:
        app()
    except LandscapexError as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        sys.exit(1)
    finally:
        warnings.formatwarning = default


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("landscapex-demo"),
    points: Annotated[int, typer.Option(help="Grid points along each axis.")] = 51,
) -> None:
    """Compute and draw the surface of a small network on real data; nothing else is needed."""
    import landscapex as lx
    from landscapex.storage.store import find_journals

    model, data, loss = lx.examples.digits()
    file = out / "surface.nc"
    with _resumable(file):
        out.mkdir(parents=True, exist_ok=True)
        # One batch and one thread: the network is so small that splitting the work costs time.
        objective = lx.Objective(model, data, loss, metrics="accuracy", batch_size=len(data[1]))
        stopped = bool(find_journals(file))  # a finished demo starts over
        surface = lx.surface(objective, points=points, out=file, resume=stopped, threads=1)
        line = lx.line(objective, points=2 * points - 1, threads=1)
    pictures = {
        "surface.png": (surface.plot(), "the surface as contours; the cross is the network"),
        "surface3d.png": (surface.plot3d(), "the same in three dimensions"),
        "accuracy.png": (surface.plot("accuracy"), "the accuracy at the same points"),
        "line.png": (line.plot(), "a finer cut through the centre, along direction 1"),
    }
    typer.echo("")
    typer.echo(
        f"{_count(model)} weights trained on {len(data[1]):,} images of handwritten digits, moved "
        "along two random\ndirections, along each by up to the length of every filter."
    )
    typer.echo(_summary(surface))
    typer.echo("")
    typer.echo(f"  {file}  loss and accuracy at {surface.loss.size:,} points (NetCDF)")
    for name, (figure, what) in pictures.items():
        lx.plot.save(figure, out / name)
        typer.echo(f"  {out / name}  {what}")


@app.command()
def surface(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns (model, data, loss), in a module that "
            "can be imported from here.",
        ),
    ],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights to load: .safetensors, or .pt with a state_dict.")
    ] = None,
    points: Annotated[str, typer.Option(metavar="N|NxM", help="Grid points per axis.")] = "51",
    span: Annotated[
        str | None, typer.Option(metavar="S|LO,HI", help="From -S to S, or from LO to HI.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random directions.")] = 0,
    directions: Annotated[
        str,
        typer.Option(
            metavar="random|hessian|FILE",
            help="hessian: eigenvectors of the largest eigenvalues. FILE: written by "
            "Directions.save.",
        ),
    ] = "random",
    out: Annotated[Path, typer.Option(help="Result to write (NetCDF).")] = Path("surface.nc"),
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on where a run to OUT stopped.")
    ] = True,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N|auto",
            help="Compute part I, from 0, of N; the last one joins them. auto: one part for each "
            "process of torchrun.",
        ),
    ] = "auto",
    time_limit: Annotated[
        str | None,
        typer.Option(
            metavar="SECONDS|H:MM:SS",
            help="Stop before this, with exit status 75; go on later.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="accuracy, error or top5; may be repeated.")
    ] = None,
    bn: Annotated[BatchNorm, typer.Option(help="Batch norm: as trained, or new statistics.")] = (
        BatchNorm.EVAL
    ),
    threads: Annotated[int | None, typer.Option(help="Threads of torch.")] = None,
    engine: Annotated[str, typer.Option(help="auto, eager or compiled.")] = "auto",
) -> None:
    """Compute the loss surface of your own model on a plane through its weights."""
    began = time.monotonic()
    grid = _parse_points(points)
    limits = _parse_span(span)
    import landscapex as lx
    from landscapex.grids.time_limit import parse_time_limit

    seconds = parse_time_limit(time_limit)
    named = directions in ("random", "hessian")
    if not named and not os.path.exists(directions):
        raise ArgumentError(
            "`--directions` must be random, hessian or a file that Directions.save wrote, got "
            f"{directions!r}: there is no such file."
        )
    with _resumable(out), _options_named():
        model, data, loss = _call_on_own_device(target)
        if checkpoint is not None:
            from landscapex.storage import checkpoints

            checkpoints.load(model, checkpoint)
        objective = lx.Objective(model, data, loss, bn=bn.value, metrics=tuple(metric or ()))
        chosen = directions if named else lx.Directions.load(directions)
        result = lx.surface(
            objective,
            directions=chosen,
            points=grid,
            span=limits,
            seed=seed,
            out=out,
            resume=resume,
            shard=shard,
            time_limit=None if seconds is None else max(seconds - time.monotonic() + began, 1e-3),
            engine=engine,
            threads=threads,
        )
    if result.complete:
        typer.echo(_summary(result))
        typer.echo(f"Written to {out}. Draw it: {_command('show', out)}")
    else:
        typer.echo(f"This part is kept beside {out}; the last one joins them.")
        typer.echo(f"What is missing says: {_command('merge', out)}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A result, or the journal of a run still going.")],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Picture to write: .png, .pdf, .svg or another that Matplotlib knows. "
            "Default: FILE as .png."
        ),
    ] = None,
    kind: Annotated[Picture | None, typer.Option(help="Default: line if 1-D.")] = None,
    column: Annotated[str, typer.Option(help="What to draw: loss, accuracy, ...")] = "loss",
) -> None:
    """Draw a result."""
    import landscapex as lx

    result = lx.open(file)
    if kind is None:
        kind = Picture.LINE if result.ndim == 1 else Picture.CONTOUR
    if (kind is Picture.LINE) != (result.ndim == 1):
        raise ArgumentError(
            f"`--kind {kind}` does not fit {file}, which has {result.ndim} dimension(s)."
        )
    figure = result.plot3d(column) if kind is Picture.SURFACE else result.plot(column)
    out = out or file.with_suffix(".png")
    lx.plot.save(figure, out)
    typer.echo(f"Written to {out}.")


@app.command()
def export(
    file: Annotated[
        Path,
        typer.Argument(help="A result, a journal, or a surface file of loss-landscape (.h5)."),
    ],
    out: Annotated[
        Path,
        typer.Argument(help="What to write: .html, .vts, .png, .svg, .pdf, .csv, .h5 or .nc."),
    ],
    column: Annotated[str | None, typer.Option(help="What to draw. Default: loss.")] = None,
    scale: Annotated[
        str | None, typer.Option(help="Of what is drawn: auto, linear, log or symlog.")
    ] = None,
) -> None:
    """Write a result for a browser, ParaView, loss-landscape, a spreadsheet or a paper."""
    from landscapex.export import convert

    convert(file, out, column=column, scale=scale)
    typer.echo(f"Written to {out}.")


@app.command()
def info(
    file: Annotated[Path, typer.Argument(help="A result, or the journal of a run still going.")],
) -> None:
    """Say what is in a result and how it was made."""
    import landscapex as lx

    result = lx.open(file)
    typer.echo(repr(result))
    for line in _tree(result.provenance):
        typer.echo(line)


@app.command()
def merge(
    file: Annotated[Path, typer.Argument(help="The --out that the shards were given.")],
) -> None:
    """Join the parts of a run that was split, or say which points are missing."""
    import landscapex as lx
    from landscapex.storage.opening import missing_points

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LandscapexWarning)  # what is missing is an error here
        result = lx.merge(file)
    if not result.complete:
        raise ArgumentError(missing_points(result, file))
    typer.echo(_summary(result))
    typer.echo(f"Written to {file}. Draw it: {_command('show', file)}")


@app.command()
def doctor() -> None:
    """Say what was built, what is missing and how to get it."""
    import landscapex as lx

    typer.echo(str(lx.doctor()))


def _format_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """A line for a person; where in our code it was raised helps nobody here."""
    if issubclass(category, LandscapexWarning):
        return f"Warning: {message}\n"
    return f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _call(target: str) -> tuple[Any, Any, Any]:
    """Import MODULE and call FUNCTION; errors of the user's own code pass."""
    name, _, function = target.partition(":")
    if not all(part.isidentifier() for part in name.split(".")) or not function.isidentifier():
        raise ArgumentError(
            f"`MODULE:FUNCTION` must name a module and a function in it, as in "
            f"`train:build` for build() in train.py, got {target!r}."
        )
    if name.endswith(".py") and os.path.isfile(name):
        plain = name.removesuffix(".py")
        raise ArgumentError(
            f"`MODULE:FUNCTION` must name a module, without .py: `{plain}:{function}`, got "
            f"{target!r}."
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module was found; something that it imports was not
        raise ArgumentError(f"`{target}`: there is no module {error.name!r} here.") from error
    build = getattr(module, function, None)
    if not callable(build):
        raise ArgumentError(f"`{target}`: module {name!r} has no function {function!r}.")
    made = build()
    if not isinstance(made, tuple) or len(made) != 3:
        size = f" of length {len(made)}" if isinstance(made, tuple) else ""
        raise ArgumentTypeError(
            f"`{target}` must return (model, data, loss), got {type(made).__name__}{size}."
        )
    return made


def _call_on_own_device(target: str) -> tuple[Any, Any, Any]:
    """What the user's function returns; under torchrun on the GPU of this process."""
    rank = this_rank()
    device = None if rank is None else claim_device(rank)
    model, data, loss = _call(target)
    parameter = next(model.parameters(), None) if device is not None else None
    if parameter is not None and parameter.device.type == "cuda":
        model = model.to(device)  # whatever number the function named
    return model, data, loss


def _parse_points(text: str) -> int | tuple[int, int]:
    try:
        numbers = [int(part) for part in text.lower().split("x")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ArgumentError(f"`--points` must be N or NxM, as in 51 or 51x31, got {text!r}.")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def _parse_span(text: str | None) -> float | tuple[float, float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ArgumentError(f"`--span` must be S or LO,HI, as in 1 or -0.5,1.5, got {text!r}.")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


@contextmanager
def _resumable(out: Path) -> Iterator[None]:
    """After Ctrl-C, SIGTERM or the time limit say what was kept and how to go on; exit."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", TimeLimitWarning)
            warnings.filterwarnings("ignore", "stopped by SIGTERM", LandscapexWarning)  # see below
            yield
    except (KeyboardInterrupt, Terminated, TimeLimitWarning) as stop:
        rank = this_rank()
        partial = getattr(stop, "surface", None)
        if partial is not None:
            at_limit = " at the time limit" if isinstance(stop, TimeLimitWarning) else ""
            kept = f"{int(partial.evaluated.sum()):,} of {partial.loss.size:,} points"
            typer.echo(f"\nStopped{at_limit}. {kept} are kept beside {out}.", err=True)
        again = _command(*[part for part in sys.argv[1:] if part != "--no-resume"])
        if rank is not None:
            again = f"torchrun --nproc-per-node {rank.local_size} -m {again}"
        typer.echo(f"Go on with: {again}", err=True)
        status = {Terminated: 143, TimeLimitWarning: 75 if rank is None else 0}
        raise typer.Exit(status.get(type(stop), 130)) from None


@contextmanager
def _options_named() -> Iterator[None]:
    """Errors name the arguments of functions; say what the options are called here."""
    try:
        yield
    except (ResumeMismatchError, CorruptFileError) as error:
        text = str(error).replace("resume=False", "--no-resume").replace("`out`", "`--out`")
        raise type(error)(text) from error


def _command(*arguments: str | Path) -> str:
    return shlex.join(["landscapex", *map(str, arguments)])


def _summary(result: Surface) -> str:
    """One line: where the loss is lowest, and how it compares with the centre."""
    lowest = result.minimum
    at = ", ".join(f"{c:g}" for c in lowest.coordinates)
    return f"Loss {result.center_loss:.6g} at the centre; lowest {lowest.value:.6g} at ({at})."


def _count(model: Any) -> str:
    return f"{sum(p.numel() for p in model.parameters()):,}"


def _tree(node: Any, indent: int = 0) -> Iterator[str]:
    """Nested mappings as indented lines."""
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield f"{'  ' * indent}{key}:"
            yield from _tree(value, indent + 1)
        else:
            yield f"{'  ' * indent}{key}: {value}"
