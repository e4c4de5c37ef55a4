"""Files for ParaView, read by hand and, where it is installed, by VTK itself."""

from __future__ import annotations

import re
import tempfile

import numpy as np
import pytest
import torch
import vtk_files
from export_cases import PLACES, hide, make, plane, volume

import landscapex as lx
from landscapex import export
from landscapex.errors import ArgumentError, ArgumentTypeError, MissingExtraError, OutputError

pytest.importorskip("pyevtk", reason="needs pyevtk")


def bowl(**options):
    """From 1 to 10,001, which pictures draw on a logarithmic scale."""
    x, y = PLACES[2]
    return make(1 + 5000 * (x[:, None] ** 2 + y**2), x, y, **options)


def by_vtk(path):
    """Coordinates, arrays and the cells that VTK draws of a grid."""
    vtk = pytest.importorskip("vtk", reason="needs VTK")
    from vtk.util.numpy_support import vtk_to_numpy

    reader = vtk.vtkXMLStructuredGridReader()
    reader.SetFileName(str(path))
    reader.Update()
    assert reader.GetErrorCode() == 0
    grid = reader.GetOutput()
    drawn = vtk.vtkGeometryFilter()
    drawn.SetInputData(grid)
    drawn.Update()
    points = grid.GetPointData()
    names = [points.GetArrayName(k) for k in range(points.GetNumberOfArrays())]
    arrays = {name: vtk_to_numpy(points.GetArray(name)) for name in names}
    active = points.GetScalars().GetName()
    return vtk_to_numpy(grid.GetPoints().GetData()), arrays, active, drawn.GetOutput()


# ---------------------------------------------------------------- where values are


@pytest.mark.parametrize("height", [0, 0.5, None])
def test_trap_05_each_point_has_its_value(tmp_path, height):
    path = plane().to_vts(tmp_path / "s.vts", height=height)
    root, arrays = vtk_files.read(path)
    assert vtk_files.extent(root) == (3, 5, 1)
    x, y, z = arrays["points"].T
    np.testing.assert_array_equal(arrays["loss"], 10 * x + y)
    assert sorted(set(x)) == [0, 1, 2]
    expected = {0: 0 * x, 0.5: (10 * x + y) / 24 * 0.5 * 4, None: 10 * x + y}[height]
    np.testing.assert_allclose(z, expected, atol=1e-15)


def test_trap_05_vtk_reads_each_value_at_its_place(tmp_path):
    points, arrays, active, drawn = by_vtk(plane().to_vts(tmp_path / "s.vts"))
    np.testing.assert_array_equal(arrays["loss"], 10 * points[:, 0] + points[:, 1])
    assert active == "loss"
    assert drawn.GetNumberOfCells() == 2 * 4


def test_a_volume_keeps_its_axes(tmp_path):
    root, arrays = vtk_files.read(volume().to_vts(tmp_path / "s.vts"))
    assert vtk_files.extent(root) == (2, 3, 4)
    x, y, z = arrays["points"].T
    np.testing.assert_allclose(arrays["loss"], 200 + 100 * x + 10 * y + z)
    assert len(set(z)) == 4


def test_a_line_is_a_curve_of_that_height(tmp_path):
    (x,) = PLACES[1]
    path = make(1 + x**2, x).to_vts(tmp_path / "s.vts", scale="linear", height=1)
    root, arrays = vtk_files.read(path)
    assert vtk_files.extent(root) == (9, 1, 1)
    np.testing.assert_array_equal(arrays["points"][:, 0], x)
    np.testing.assert_allclose(arrays["points"][:, 2], 2 * x**2)  # as high as the axis is long


def test_heights_are_on_the_scale_and_arrays_are_as_computed(tmp_path):
    surface = bowl()
    _, arrays = vtk_files.read(surface.to_vts(tmp_path / "s.vts"))
    order = surface.loss.ravel(order="F")
    np.testing.assert_array_equal(arrays["loss"], order)
    np.testing.assert_allclose(arrays["loss (log scale)"], np.log10(order))
    z = arrays["points"][:, 2]
    assert (z.min(), z.max()) == (pytest.approx(0), pytest.approx(0.5 * 2))
    share = np.log10(order) / np.log10(order.max())
    np.testing.assert_allclose(z / z.max(), share)
    _, raw = vtk_files.read(surface.to_vts(tmp_path / "s.vts", height=None, scale="linear"))
    np.testing.assert_array_equal(raw["points"][:, 2], order)
    assert "loss (linear scale)" not in raw


def test_a_height_of_values_keeps_what_tiny_ranges_have_in_common(tmp_path):
    (x,) = PLACES[1]
    surface = make(1e6 + 1e-4 * x, x)
    _, arrays = vtk_files.read(surface.to_vts(tmp_path / "s.vts", height=None))
    np.testing.assert_allclose(arrays["points"][:, 2], surface.loss, rtol=1e-15)


RANGES = {
    "tiny": 1e-307 * np.linspace(0, 0.05, 9),
    "the smallest": 5e-324 * np.arange(9),
    "huge": 1.7e308 * np.linspace(-1, 1, 9),
    "as large": 1e308 * np.linspace(0, 1, 9),
}


@pytest.mark.parametrize("name", RANGES)
def test_a_range_of_any_size_has_its_height(tmp_path, name):
    """A factor per unit of the loss would be infinite, or 0."""
    (x,) = PLACES[1]
    path = make(RANGES[name], x).to_vts(tmp_path / "s.vts", scale="linear", height=1)
    _, arrays = vtk_files.read(path)
    np.testing.assert_allclose(arrays["points"][:, 2], np.linspace(0, 2, 9), atol=1e-12)
    assert arrays["loss"].tobytes() == RANGES[name].tobytes()
    text = path.read_bytes().partition(b" -->")[0].decode().splitlines()[-1]
    words = re.findall(r"z = (\S+) \+ (\S+) \* place of loss \(linear scale\)(?: / (\S+))?$", text)
    base, factor, unit = (float(word or 1) for word in words[0])
    np.testing.assert_allclose(arrays["points"][:, 2], base + factor * (RANGES[name] / unit))


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
@pytest.mark.parametrize("value", [5e-324, 1.75e308])
def test_a_constant_of_any_size_is_flat(tmp_path, scale, value):
    (x,) = PLACES[1]
    path = make(np.full(9, value), x).to_vts(tmp_path / "s.vts", scale=scale)
    _, arrays = vtk_files.read(path)
    heights = arrays["points"][:, 2]
    assert np.ptp(heights) == 0
    assert 0 <= heights[0] <= 1


def test_the_chosen_column_comes_first(tmp_path):
    x, y = PLACES[2]
    surface = make({"loss": x[:, None] + 0 * y, "accuracy": 0 * x[:, None] + y}, x, y)
    root, arrays = vtk_files.read(surface.to_vts(tmp_path / "s.vts", "accuracy"))
    (points,) = root.iter("PointData")
    assert points.get("Scalars") == "accuracy"
    np.testing.assert_allclose(arrays["points"][:, 2], arrays["points"][:, 1] / 2 + 0.5)
    np.testing.assert_array_equal(arrays["loss"], arrays["points"][:, 0])


# ---------------------------------------------------------------- holes


def holed():
    loss = np.arange(35.0).reshape(5, 7)
    loss[1, 1], loss[1, 5] = np.nan, np.inf
    return make(loss, *PLACES[2], done=np.arange(35) != 3 * 7 + 3)


def test_trap_07_what_is_not_finite_stays_and_is_hidden(tmp_path):
    surface = holed()
    _, arrays = vtk_files.read(surface.to_vts(tmp_path / "s.vts"))
    assert arrays["loss"].tobytes() == surface.loss.ravel(order="F").tobytes()
    np.testing.assert_array_equal(arrays["evaluated"], surface.evaluated.ravel(order="F"))
    missing = ~np.isfinite(surface.loss.ravel(order="F"))
    assert missing.sum() == 3
    np.testing.assert_array_equal(arrays["vtkGhostType"], 2 * missing)
    cells = arrays["cells/vtkGhostType"].reshape(6, 4).T  # x fastest
    hole = missing.reshape(7, 5).T
    for i, j in np.ndindex(4, 6):
        assert cells[i, j] == 32 * hole[i : i + 2, j : j + 2].any()
    assert np.isfinite(arrays["points"]).all()
    assert (arrays["points"][missing, 2] == 0).all()
    _, whole = vtk_files.read(plane().to_vts(tmp_path / "s.vts"))
    assert not [name for name in whole if "Ghost" in name]


def test_trap_07_vtk_leaves_the_cells_of_holes_open(tmp_path):
    _, arrays, _, drawn = by_vtk(holed().to_vts(tmp_path / "s.vts"))
    assert np.isnan(arrays["loss"]).sum() == 2
    assert drawn.GetNumberOfCells() == 4 * 6 - 3 * 4


@pytest.mark.parametrize("value", [np.nan, 3.0])
def test_nothing_and_constants_can_be_written(tmp_path, value):
    path = make(np.full((5, 7), value), *PLACES[2]).to_vts(tmp_path / "s.vts")
    _, arrays = vtk_files.read(path)
    assert np.isfinite(arrays["points"]).all()
    assert np.ptp(arrays["points"][:, 2]) == 0


def test_columns_with_names_that_are_taken_keep_their_numbers(tmp_path):
    """VTK would hide points by one of them; another is that of the places on the scale."""
    (x,) = PLACES[1]
    others = {"vtkGhostType": np.arange(9.0), "loss (log scale)": np.arange(9.0) + 1}
    loss = np.where(x == 0, np.nan, np.exp(9 * x))
    path = make({"loss": loss, **others}, x).to_vts(tmp_path / "s.vts", "vtkGhostType")
    root, arrays = vtk_files.read(path)
    np.testing.assert_array_equal(arrays["vtkGhostType (column)"], np.arange(9.0))
    assert [a.get("Scalars") for a in root.iter("PointData")] == ["vtkGhostType (column)"]
    assert "vtkGhostType" not in arrays
    path = make({"loss": loss, **others}, x).to_vts(tmp_path / "s.vts")
    _, arrays = vtk_files.read(path)
    np.testing.assert_array_equal(arrays["vtkGhostType"], 2 * np.isnan(loss))
    np.testing.assert_array_equal(arrays["loss (log scale) (column)"], np.arange(9.0) + 1)
    np.testing.assert_allclose(arrays["loss (log scale)"], np.log10(loss))
    np.testing.assert_array_equal(arrays["loss"], loss)


# ---------------------------------------------------------------- the file


def test_the_head_says_how_it_was_made(tmp_path):
    surface = make({"loss": np.ones(9), 'a<b>"c" & d': np.arange(9.0)}, *PLACES[1],
                   created="a -- b --- c", seed=3)  # fmt: skip
    path = surface.to_vts(tmp_path / "Höhe ☃.vts", scale="linear")
    _, arrays = vtk_files.read(path)  # names and comments are well-formed XML
    np.testing.assert_array_equal(arrays['a<b>"c" & d'], np.arange(9.0))
    lines = path.read_bytes().partition(b"-->")[0].decode().splitlines()
    assert lines[1].startswith("<!-- landscapex ")
    assert "seed 3" in lines[1]
    assert lines[2].startswith("alpha: random direction 1, 1 = the length of the weights")
    assert "place of loss (linear scale)" in lines[3]


@pytest.mark.parametrize("scale", ["linear", "log", "symlog"])
def test_the_head_leads_back_to_the_values(tmp_path, scale):
    x, y = PLACES[2]
    loss = 1 + 5000 * (x[:, None] ** 2 + y**2) - 3000 * (scale != "log")
    path = make(loss, x, y).to_vts(tmp_path / "s.vts", scale=scale)
    text = path.read_bytes().partition(b" -->")[0].decode().splitlines()[-1]
    base, factor = map(float, re.findall(r"z = (\S+) \+ (\S+) \* place", text)[0])
    v = loss.ravel(order="F")
    if scale == "symlog":
        below, t, far = map(
            float, re.findall(r"v / (\S+) up to (\S+), .*\|v\| / (\S+)\)\)", text)[0]
        )
        assert below == t == far
        v = np.where(abs(v) <= t, v / t, np.sign(v) * (1 + np.log10(np.maximum(abs(v), t) / t)))
    elif scale == "log":
        v = np.log10(v)
    _, arrays = vtk_files.read(path)
    np.testing.assert_allclose(arrays["points"][:, 2], base + factor * v, atol=1e-12)


def test_the_same_result_gives_the_same_file_and_replaces_it(tmp_path):
    first, again = (bowl().to_vts(tmp_path / "s.vts").read_bytes() for _ in range(2))
    assert first == again
    assert [path.name for path in tmp_path.iterdir()] == ["s.vts"]
    (tmp_path / "theirs.vts").write_text('<?xml version="1.0"?>\n<VTKFile/>')
    with pytest.raises(OutputError, match="must not be replaced"):
        bowl().to_vts(tmp_path / "theirs.vts")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "s.vtk"}, ArgumentError, r"`path` must end in \.vts, got 's\.vtk'"),
        ({"column": "x"}, ArgumentError, "`column` must be one of loss, got 'x'"),
        ({"path": "no/s.vts"}, OutputError, "`path` must be in a folder that exists, got"),
        ({"path": "s\0.vts"}, OutputError, "`path` must be the name of a file, got"),
        ({"scale": "cubic"}, ArgumentError, "`scale` must be one of"),
        ({"height": -1}, ArgumentError, "`height` must be finite and not negative, got -1"),
        ({"height": np.inf}, ArgumentError, "`height` must be finite and not negative, got inf"),
        ({"height": "tall"}, ArgumentTypeError, "`height` must be a number or None, got str"),
        ({"height": True}, ArgumentTypeError, "`height` must be a number or None, got bool"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        plane().to_vts(**{"path": "s.vts", **options})
    assert not list(tmp_path.iterdir())


def test_without_room_for_temporary_files_it_is_an_error_of_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(
        OutputError, match=r"s\.vts could not be made in a temporary folder: No such"
    ):
        plane().to_vts(tmp_path / "s.vts")
    assert not list(tmp_path.iterdir())


def test_fault_29_a_missing_extra_is_named_with_its_command(tmp_path, monkeypatch):
    hide(monkeypatch, "pyevtk")
    with pytest.raises(MissingExtraError, match=r"pip install 'landscapex\[paraview\]'$"):
        plane().to_vts(tmp_path / "s.vts")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- paths


@pytest.fixture(scope="module")
def run():
    """Five checkpoints, their plane with the losses on it, and its surface."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 3, generator=generator)
    model = torch.nn.Linear(3, 2)
    objective = lx.Objective(model, (inputs, inputs[:, :2] ** 2), "mse_loss")
    steps = torch.randn(5, 8, generator=generator).cumsum(0)
    trajectory = lx.trajectory(list(steps), objective, drawn=True)
    surface = lx.surface(objective, directions=trajectory, center=trajectory.center, points=5,
                         progress=False)  # fmt: skip
    return trajectory, surface


def test_a_path_is_a_line_through_its_checkpoints(tmp_path, run):
    trajectory, _ = run
    root, arrays = vtk_files.read(export.to_vtp(trajectory, tmp_path / "path.vtp"))
    (piece,) = root.iter("Piece")
    assert (piece.get("NumberOfPoints"), piece.get("NumberOfLines")) == ("5", "1")
    np.testing.assert_array_equal(arrays["connectivity"], range(5))
    np.testing.assert_array_equal(arrays["offsets"], [5])
    np.testing.assert_array_equal(arrays["points"][:, :2], trajectory.coordinates)
    assert (arrays["points"][:, 2] == 0).all()
    np.testing.assert_array_equal(arrays["loss"], trajectory.losses)
    np.testing.assert_array_equal(arrays["residual"], trajectory.residuals)
    np.testing.assert_array_equal(arrays["step"], trajectory.steps)
    np.testing.assert_array_equal(arrays["epoch"], trajectory.epochs)


@pytest.mark.parametrize("options", [{}, {"scale": "log", "height": 2.0}])
def test_a_path_lies_on_the_relief_of_its_plane(tmp_path, run, options):
    trajectory, surface = run
    _, relief = vtk_files.read(surface.to_vts(tmp_path / "s.vts", **options))
    _, path = vtk_files.read(export.to_vtp(trajectory, tmp_path / "p.vtp", surface, **options))
    fitted = options.get("scale") == "log"
    place = np.log10 if fitted else np.asarray
    slope = np.polyfit(place(relief["loss"]), relief["points"][:, 2], 1)
    expected = np.polyval(slope, place(trajectory.drawn[:, 0]))
    np.testing.assert_allclose(path["points"][:, 2], expected, rtol=1e-9, atol=1e-12)


def test_a_path_has_the_heights_of_its_column_and_no_broken_checkpoints(tmp_path):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 3, generator=generator)
    objective = lx.Objective(torch.nn.Linear(3, 2), (inputs, inputs[:, 0].gt(0).long()),
                             "cross_entropy", metrics="accuracy")  # fmt: skip
    steps = torch.randn(5, 8, generator=generator).cumsum(0)
    steps[2, 3] = np.nan
    trajectory = lx.trajectory(list(steps), objective, drawn=True)
    surface = lx.surface(objective, directions=trajectory, center=trajectory.center, points=5,
                         progress=False)  # fmt: skip
    options = {"column": "accuracy", "scale": "linear", "height": None}
    _, path = vtk_files.read(export.to_vtp(trajectory, tmp_path / "p.vtp", surface, **options))
    kept = [0, 1, 3, 4]
    np.testing.assert_array_equal(path["step"], trajectory.steps[kept])
    np.testing.assert_array_equal(path["points"][:, :2], trajectory.coordinates[kept])
    np.testing.assert_allclose(path["points"][:, 2], trajectory.drawn[kept, 1], atol=1e-12)
    np.testing.assert_array_equal(path["accuracy"], trajectory.values[kept, 1])


def test_a_path_has_steps_and_a_column_of_that_name(tmp_path):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(16, 3, generator=generator)
    objective = lx.Objective(torch.nn.Linear(3, 2), (inputs, inputs[:, :2]), "mse_loss",
                             metrics={"step": lambda out, batch: out[:, 0]})  # fmt: skip
    steps = torch.randn(3, 8, generator=generator).cumsum(0)
    trajectory = lx.trajectory(list(steps), objective)
    root, arrays = vtk_files.read(export.to_vtp(trajectory, tmp_path / "p.vtp"))
    np.testing.assert_array_equal(arrays["step"], trajectory.steps)
    np.testing.assert_array_equal(arrays["step (column)"], trajectory.values[:, 1])
    assert [a.get("Scalars") for a in root.iter("PointData")] == ["step"]


def test_vtk_reads_a_path(tmp_path, run):
    vtk = pytest.importorskip("vtk", reason="needs VTK")
    reader = vtk.vtkXMLPolyDataReader()
    reader.SetFileName(str(export.to_vtp(run[0], tmp_path / "p.vtp")))
    reader.Update()
    made = reader.GetOutput()
    assert (made.GetNumberOfPoints(), made.GetNumberOfLines()) == (5, 1)
    assert made.GetPointData().GetArray("loss").GetValue(4) == run[0].losses[4]


def test_paths_that_do_not_fit_are_refused(tmp_path, run):
    trajectory, surface = run
    target = tmp_path / "p.vtp"
    with pytest.raises(ArgumentError, match="must be over the plane of the trajectory"):
        export.to_vtp(trajectory, target, plane())
    elsewhere = trajectory.onto(trajectory.directions)  # without losses on the plane
    with pytest.raises(ArgumentError, match="must have 'loss' where its checkpoints are drawn"):
        export.to_vtp(elsewhere, target, surface)
    with pytest.raises(ArgumentTypeError, match="`trajectory` must be a Trajectory, got Surface"):
        export.to_vtp(surface, target)
    with pytest.raises(ArgumentError, match=r"`path` must end in \.vtp"):
        export.to_vtp(trajectory, tmp_path / "p.vts")
    assert not list(tmp_path.iterdir())
