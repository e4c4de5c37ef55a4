"""Settings of the documentation: ``make docs`` builds it into ``docs/_build/html``."""

from __future__ import annotations

import dataclasses
import logging
import sys
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from sphinx.ext.napoleon.docstring import GoogleDocstring
from sphinx.util.logging import getLogger

import landscapex

sys.path.insert(0, str(Path(__file__).parent))  # for figures.py

project = "landscapex"
release = landscapex.__version__
extensions = [
    "myst_nb",  # and with it myst_parser
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery", "pictures/*.ipynb"]  # the last are by sphinx-gallery
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Notebooks are stored without outputs and run when the pages are made.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds, for a cell
nb_merge_streams = True

html_theme = "furo"
html_title = "landscapex"
html_static_path = ["_static"]
html_css_files = ["landscapex.css"]
html_show_copyright = False
html_copy_source = False

# What stands between single backticks becomes a link if it is a name of the reference.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "pictures",
    "filename_pattern": r"\.py$",
    "within_subsection_order": "FileNameSortKey",
    "image_scrapers": ("figures",),
    "capture_repr": ("__repr__",),
    "ignore_repr_types": r"Figure|Picture",
    "abort_on_example_error": True,
    "download_all_examples": False,
    "write_computation_times": False,
    "show_signature": False,
    "reset_modules": (),
    "thumbnail_size": (480, 340),
}


def setup(app: Any) -> None:
    """Add what the settings cannot say."""
    torch.set_num_threads(1)  # the networks of the gallery are small: more threads mostly wait
    # accessible-pygments, of the theme, sends whatever anyone logs to the console
    logging.getLogger("landscapex").setLevel("WARNING")
    GoogleDocstring._consume_returns_section = returned
    app.connect("builder-inited", check_pictures, priority=900)  # after sphinx-gallery
    app.connect("autodoc-process-signature", without_fields)
    app.connect("object-description-transform", without_tildes, priority=900)
    app.connect("missing-reference", by_short_name)


def check_pictures(app: Any) -> None:
    """A gallery page without a picture is a mistake, of the page or of figures.py."""
    for page in sorted(Path(app.srcdir, "gallery").glob("*.py")):
        if not any(Path(app.srcdir, "pictures", "images").glob(f"sphx_glr_{page.stem}_0*.png")):
            getLogger(__name__).warning("no picture came out of %s", page.name)


def returned(docstring: Any, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
    """What follows "Returns:" is text; types are in the signature, whatever has a colon."""
    lines = docstring._dedent(docstring._consume_to_next_section())
    return [("", "", lines)] if lines else []


def without_tildes(app: Any, domain: str, objtype: str, content: Any) -> None:
    """Take out what Sphinx leaves of short names inside unions of Literals."""
    for node in content.findall(nodes.Text):
        if "~typing." in node:
            node.parent.replace(node, nodes.Text(node.replace("~typing.", "")))


def without_fields(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, str | None] | None:
    """Results are made by functions; the order of their fields is nobody's business."""
    return ("", None) if what == "class" and dataclasses.is_dataclass(thing) else None


def by_short_name(app: Any, env: Any, node: Any, text: Any) -> Any:
    """Find `Surface` and `directions.random` from every page.

    Returns:
        A link, if one class, function or module ends like this; else None: plain text.
    """
    target, domain = node.get("reftarget", ""), env.get_domain("py")
    if node.get("refdomain") != "py" or not target:
        return None
    kinds = ("class", "exception", "function", "module")
    found = [f"landscapex.{target}"] if f"landscapex.{target}" in domain.objects else [
        name
        for name, entry in domain.objects.items()
        if name.endswith("." + target) and (entry.objtype in kinds or "." in target)
    ]  # fmt: skip
    if len(found) != 1:
        return None
    return domain.resolve_xref(
        env, node["refdoc"], app.builder, node["reftype"], found[0], node, text
    )
