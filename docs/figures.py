"""Pictures for the gallery: a figure that is the last expression of a block, as in a notebook.

The figures of landscapex do not belong to pyplot, where sphinx-gallery looks by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx_gallery.scrapers import figure_rst

_DPI = 130


def scrape(block: Any, block_vars: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
    """Save the figure that a block ends with, if it does."""
    namespace = block_vars["example_globals"]
    figure = namespace.get("___")  # where sphinx-gallery keeps the value of a last expression
    if not isinstance(figure, Figure):
        return ""
    namespace["___"] = None  # the next block may end with something else
    path = next(block_vars["image_path_iterator"])
    figure.savefig(path, dpi=_DPI, bbox_inches="tight")
    title = Path(block_vars["src_file"]).read_text().splitlines()[1]
    return figure_rst([path], gallery_conf["src_dir"], title)


def _get_sg_image_scraper() -> Any:
    return scrape
