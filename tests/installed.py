"""Asks an installed landscapex for its main results: run for every wheel that is built.

`python tests/installed.py [--plain]` needs no checkout and no pytest. Results have known values.
`--plain` says that no compiled library is to be found, and without it they have to be there.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import metadata
from pathlib import Path

import numpy as np
import torch

PLAIN = "--plain" in sys.argv[1:]
TRAIN = """
import torch

def build():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3))
    inputs = torch.randn(40, 4)
    return model, (inputs, inputs[:, :3].argmax(1)), "cross_entropy"
"""


class Quadratic(torch.nn.Module):
    """Its loss is half the squared distance of the weights from the origin, in units of `scale`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))
        self.register_buffer("scale", torch.tensor([1.0, 9.0], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.5 * (self.scale * self.weight.square()).sum() * x


def mean(model: torch.nn.Module, batch: tuple[torch.Tensor]) -> torch.Tensor:
    return model(batch[0]).mean()


def import_landscapex():
    """The package, with one warning where no library was built and none where one was."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import landscapex as lx

        report = lx.doctor()
        from landscapex import _ops  # noqa: F401
    said = [str(w.message) for w in caught if "compiled kernels" in str(w.message)]
    assert len(said) == PLAIN, said
    assert report.native is not PLAIN, report
    assert bool(report.engine) is not PLAIN, report
    assert ("CPU kernels   plain PyTorch" in str(report)) is PLAIN, report
    return lx


def surfaces(lx, folder: Path) -> None:
    """Values of a surface that are known, through its file, and pictures of it."""
    data = [(torch.ones(2, dtype=torch.float64),)]
    axes = [{"weight": torch.tensor(row, dtype=torch.float64)} for row in ([1.0, 0], [0, 1.0])]
    model = Quadratic()
    out = folder / "plane.nc"
    lx.surface(model, data, mean, directions=axes, points=5, span=2, out=out, progress=False)
    surface = lx.open(out)
    alpha = np.linspace(-2, 2, 5)
    expected = 0.5 * ((3 + alpha)[:, None] ** 2 + 9 * (4 + alpha)[None] ** 2)
    np.testing.assert_allclose(surface.to_xarray()["loss"].values, expected, rtol=1e-14)
    assert model.weight.tolist() == [3.0, 4.0]
    figure = surface.plot().figure
    figure.savefig(folder / "plane.png")
    assert (folder / "plane.png").read_bytes().startswith(b"\x89PNG")


def curvature(lx) -> None:
    """Eigenvalues and trace of a Hessian that is known."""
    data = [(torch.ones(2, dtype=torch.float64),)]
    hessian = lx.hessian(lx.Objective(Quadratic(), data, mean))
    np.testing.assert_allclose(hessian.eigenvalues(2).values, [9.0, 1.0], rtol=1e-10)
    np.testing.assert_allclose(hessian.trace().value, 10.0, rtol=1e-10)


def trajectories(lx) -> None:
    """The path of four checkpoints of a network, whose true losses are those of the objective."""
    model, data, loss = lx.examples.digits()
    objective = lx.Objective(model, data, loss)
    last = {n: t.clone() for n, t in model.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    steps = [{n: 0.1 * torch.randn(t.shape, generator=rng) for n, t in last.items()} for _ in "abc"]
    states = [*[{n: last[n] + s[n] for n in last} for s in steps], last]
    path = lx.trajectory(states, objective)
    expected = [objective.loss(state) for state in states]
    np.testing.assert_allclose(path.losses, expected, rtol=1e-6)
    plane = lx.surface(objective, directions=path, points=5, progress=False)
    assert np.isfinite(plane.to_xarray()["loss"].values).all()


def commands(folder: Path) -> None:
    """The command line: a surface, and a picture of it."""
    (folder / "train.py").write_text(TRAIN)
    for line in ("surface train:build --points 5 --out s.nc", "show s.nc --out s.png"):
        command = [sys.executable, "-m", "landscapex", *line.split()]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert run.returncode == 0, (line, run.stdout, run.stderr)
    assert (folder / "s.png").read_bytes().startswith(b"\x89PNG")


def main() -> None:
    import matplotlib

    matplotlib.use("agg")
    assert metadata("landscapex")["License-Expression"] == "BSD-3-Clause"
    lx = import_landscapex()
    with tempfile.TemporaryDirectory() as folder:
        surfaces(lx, Path(folder))
        commands(Path(folder))
    curvature(lx)
    trajectories(lx)
    sys.stdout.write(f"landscapex in {Path(lx.__file__).parent} works.\n")


if __name__ == "__main__":
    main()
