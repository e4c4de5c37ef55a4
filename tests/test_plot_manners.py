"""Pictures: nothing global is touched, files are whole, and wrong arguments are refused."""

from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from plot_cases import BOWL, A, X, Y, contours_of, make, volume

from landscapex import plot
from landscapex.errors import ArgumentError, ArgumentTypeError, OutputError

pytestmark = pytest.mark.filterwarnings("error")
PNG = b"\x89PNG\r\n\x1a\n"


def test_nothing_global_is_touched():
    """No window, no backend, no pyplot, no settings: pictures work on any machine."""
    code = (
        "import sys, matplotlib as mpl, numpy as np\n"
        "settings = lambda: {k: mpl.rcParams[k] for k in mpl.rcParams if k != 'backend'}\n"
        "before = settings()\n"
        "from landscapex import plot\n"
        "from landscapex.grids.results import Surface\n"
        "from landscapex.storage.store import AxisInfo, RunHeader\n"
        "axes = tuple(AxisInfo(n, (-1.0, 0.0, 1.0), 'd', '1') for n in ('alpha', 'beta'))\n"
        "header = RunHeader('surface', axes, ('loss',), {}, {}, {})\n"
        "s = Surface.from_run(header, np.ones(9, bool), np.arange(9.0)[:, None])\n"
        "for f in (plot.contour, plot.surface3d, plot.compare): plot.png(f(s))\n"
        "plot.thumbnail(s)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert mpl.get_backend(auto_select=False) is None\n"
        "assert settings() == before\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_fault_26_threads_draw_the_same_pictures():
    surfaces = [make(np.exp(k * A) * BOWL, X, Y) for k in range(4)]
    surfaces += [make(np.exp(k * X), X) for k in (2, 6)]
    alone = [plot.png(s.plot()) for s in surfaces]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda s: plot.png(s.plot()), surfaces)) == alone


def test_a_notebook_shows_the_figure_without_pyplot():
    figure = plot.contour(make(BOWL, X, Y))
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(PNG)


@pytest.mark.parametrize(
    "surface",
    [
        make(X**2, X),
        make(BOWL, X, Y),
        volume(),
        make(BOWL * np.nan, X, Y),
        make(X * np.nan, X),
        make(BOWL, X, Y, done=np.zeros(BOWL.size)),
    ],
    ids=["line", "surface", "volume", "nan surface", "nan line", "nothing evaluated"],
)
def test_thumbnails_are_small_pictures(surface):
    picture = plot.thumbnail(surface)
    assert picture.startswith(PNG)
    assert len(picture) < 60_000
    image = mpl.image.imread(io.BytesIO(picture))
    assert 200 < image.shape[0] < 330
    assert 250 < image.shape[1] < 420


def test_the_users_axes_are_drawn_into():
    figure = Figure()
    inner = figure.subfigures(1, 2)[1]
    ax = inner.add_subplot()
    assert plot.contour(make(BOWL, X, Y), ax=ax, colorbar=False) is figure
    assert contours_of(ax)[1] is not None
    other = figure.add_subplot(projection="3d")
    assert plot.surface3d(make(BOWL, X, Y), ax=other, colorbar=False) is figure
    flat = figure.add_subplot()
    columns = {"loss": X**2, "accuracy": X**4}
    assert plot.line(make(columns, X), column=["loss", "accuracy"], ax=flat) is figure
    assert flat.get_ylabel() == "loss, accuracy (linear scale)"


@pytest.mark.parametrize(("suffix", "start"), [("png", PNG), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_saved_pictures_are_of_the_format_of_their_suffix(tmp_path, suffix, start):
    path = tmp_path / f"ein Bild ä.{suffix}"
    path.write_bytes(b"old")
    assert plot.save(plot.contour(make(BOWL, X, Y)), path) == path
    assert path.read_bytes().startswith(start)
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputError, match=r"taken\.png could not be written"):
        plot.save(plot.contour(make(BOWL, X, Y)), tmp_path / "taken.png")
    assert [p.name for p in tmp_path.iterdir()] == ["taken.png"]


SURFACE, LINE = make(BOWL, X, Y), make(X**2, X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: plot.contour(LINE), ArgumentError, "`contour` needs results with 2 axes, got 1"),
        (lambda: plot.line(SURFACE), ArgumentError, "with 1 axis, got 2; use `contour`"),
        (lambda: plot.slices(SURFACE), ArgumentError, "with 3 axes, got 2; use `contour`"),
        (lambda: plot.surface3d(volume()), ArgumentError, "with 2 axes, got 3; use `slices`"),
        (lambda: plot.line(), ArgumentError, "`line` needs at least one result, got none"),
        (lambda: plot.contour([1]), ArgumentTypeError, "`contour` draws results .*, got list"),
        (lambda: plot.contour(SURFACE, "x"), ArgumentError, "must be one of loss, got 'x'"),
        (lambda: plot.contour(SURFACE, "LOSS"), ArgumentError, "got 'LOSS'; did you mean 'loss'"),
        (lambda: plot.line(LINE, column=["loss", "x"]), ArgumentError, "one of loss, got 'x'"),
        (lambda: plot.contour(SURFACE, scale="ln"), ArgumentError, "`scale` must be .*got 'ln'"),
        (lambda: plot.line(LINE, scale=2), ArgumentTypeError, "`scale` must be a string, got int"),
        (
            lambda: plot.contour(make(-BOWL, X, Y), scale="log"),
            ArgumentError,
            r'`scale="log"` needs values above 0, got at most .0\.',
        ),
        (lambda: plot.contour(SURFACE, levels=0), ArgumentError, "must be at least 1, got 0"),
        (lambda: plot.contour(SURFACE, levels=[]), ArgumentError, "must be finite numbers, got"),
        (lambda: plot.contour(SURFACE, levels="a"), ArgumentTypeError, "numbers, got 'a'"),
        (
            lambda: plot.contour(SURFACE, levels=[0, 1], scale="log"),
            ArgumentError,
            "`levels` must be above 0 on a log scale, got 0",
        ),
        (lambda: plot.compare(SURFACE, kind="pie"), ArgumentError, "`kind` must be .*got 'pie'"),
        (lambda: plot.compare(SURFACE, labels=[]), ArgumentError, r"one name per result \(1\)"),
        (lambda: plot.compare(SURFACE, labels="a"), ArgumentError, r"per result \(1\), got 'a'"),
        (lambda: plot.slices(volume(), count=0), ArgumentError, "`count` must be .* 1, got 0"),
        (lambda: plot.slices(volume(), axis="z"), ArgumentError, "`axis` must be .*got 'z'"),
        (
            lambda: plot.surface3d(SURFACE, ax=Figure().add_subplot()),
            ArgumentError,
            '`ax` must be made with projection="3d", got Axes',
        ),
        (lambda: plot.save(Figure(), "a.nc"), ArgumentError, r"`path` must end in .*got 'a\.nc'"),
    ],
)
def test_errors_say_what_must_hold_and_what_arrived(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_axes_that_were_removed_are_refused():
    ax = Figure().add_subplot()
    ax.remove()
    with pytest.raises(ArgumentError, match="`ax` must belong to a figure"):
        plot.contour(SURFACE, ax=ax)
