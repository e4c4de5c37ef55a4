"""Results for other programs: browsers, ParaView, loss-landscape, spreadsheets, papers.

Every file is there whole, or not at all. What was computed is written as it is: values that are
not finite stay what they are, and points that were not evaluated can be told from them.
"""

from landscapex.export.formats import convert
from landscapex.export.page import figure, to_html
from landscapex.export.paraview import to_vtp, to_vts
from landscapex.export.picture import to_picture
from landscapex.export.reference import read_h5, to_h5
from landscapex.export.reference_directions import directions_from_h5, directions_to_h5
from landscapex.export.table import to_csv
from landscapex.export.target import provenance_line

__all__ = [
    "convert",
    "directions_from_h5",
    "directions_to_h5",
    "figure",
    "provenance_line",
    "read_h5",
    "to_csv",
    "to_h5",
    "to_html",
    "to_picture",
    "to_vtp",
    "to_vts",
]
