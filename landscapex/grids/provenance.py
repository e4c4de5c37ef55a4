"""What a result says about how it was made."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Sequence

import numpy as np
import torch

from landscapex import _lib
from landscapex.axes import Directions
from landscapex.grids.grid import AXIS_NAMES, Grid
from landscapex.grids.quantities import Quantity
from landscapex.session import Session
from landscapex.storage.header import KINDS, AxisInfo, RunHeader


def describe_run(
    session: Session,
    quantity: Quantity,
    directions: Directions,
    grid: Grid,
    center: list[float],
    fingerprint: dict[str, str],
) -> RunHeader:
    """The header of a run: what it computes, what decides its numbers, what a reader may ask.

    Args:
        session: Around the centre of the run.
        quantity: What is computed.
        directions: Its axes, ``(K, P)``.
        grid: Its points.
        center: Values at the centre, by column.
        fingerprint: Of the session before its first evaluation.

    Returns:
        The header; its provenance holds the keys that results show.
    """
    norms = directions.norm().tolist()
    infos = tuple(
        AxisInfo(name, tuple(values.tolist()), axis.label, axis.unit(norm))
        for name, values, axis, norm in zip(
            AXIS_NAMES, grid.axes, directions.axes, norms, strict=False
        )
    )
    fingerprint = {
        "format": "1",
        **quantity.fingerprint,
        **fingerprint,
        "directions": directions.fingerprint(),
    }
    about = session.describe()
    notes = [note for d in about["data"].values() for note in d["notes"]]
    notes += [f"{a.label}: {a.note}" for a in directions.axes if a.note]
    notes += [
        f"{a.label}: zero in {a.zero_filters} filters that are zero in the model"
        for a in directions.axes
        if a.zero_filters
    ]
    if not grid.holds_center:
        notes.append("the centre is not a grid point")
    provenance = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "title": f"{about['model']['class']}, {about['model']['entries']:,} parameters",
        "center": dict(zip(quantity.columns, center, strict=True)),
        "directions": [
            {**a.__dict__, "norm": n} for a, n in zip(directions.axes, norms, strict=True)
        ],
        "cosines": directions.cosine().tolist(),
        "seed": directions.axes[0].seed,
        **about,
        **quantity.describe(),
        "engine": {"name": session.choice.name, "why": session.choice.why},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
        "fingerprint": fingerprint,
        "notes": list(dict.fromkeys(notes)),
    }
    recorded = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "native": _lib.native,
        "engine": session.choice.name,
        "layout": session.engine.layout.recorded(),
        "batches": {name: list(_layout(f.sizes)) for name, f in session.engine.laid_out.items()},
    }
    return RunHeader(
        KINDS[len(infos) - 1], infos, quantity.columns, fingerprint, recorded, provenance
    )


def _layout(sizes: Sequence[int]) -> Sequence[int]:
    """Batch sizes, without repeating the usual one."""
    return (sizes[0], len(sizes), sizes[-1]) if len(set(sizes[:-1])) == 1 else sizes
