"""Numbers that change, move or vanish on the way into files of other programs, planted."""

from __future__ import annotations

from .runner import Planted

LOSS_LANDSCAPE = "tests/test_export_loss_landscape.py::"
PAGE = "tests/test_export.py::"
PARAVIEW = "tests/test_export_paraview.py::"
TABLES = "tests/test_export_tables.py::"

EXPORTS = [
    Planted(
        "export 1", "the axes of a page change places", "landscapex/export/page.py",
        '"z": _nullable(heights.T),',
        '"z": _nullable(heights.reshape(heights.shape[::-1])),',
        PAGE + "test_trap_05_relief_has_each_value_at_its_place",
    ),
    Planted(
        "export 2", "the axes of a grid change places", "landscapex/export/paraview.py",
        "np.ascontiguousarray(values).reshape(shape)",
        "np.ascontiguousarray(values.T).reshape(shape)",
        PARAVIEW + "test_trap_05_each_point_has_its_value",
    ),
    Planted(
        "export 3", "the axes of their files change places", "landscapex/export/reference.py",
        "put(file, name, np.ascontiguousarray(values.T))",
        "put(file, name, np.ascontiguousarray(values))",
        LOSS_LANDSCAPE + "test_trap_05_their_pictures_show_each_value_at_its_place",
    ),
    Planted(
        "export 4", "NaN is drawn as 0", "landscapex/export/page.py",
        "    objects[~np.isfinite(array)] = None\n",
        "    objects[~np.isfinite(array)] = 0.0\n",
        PAGE + "test_trap_07_holes_stay_holes_and_are_counted",
    ),
    Planted(
        "export 5", "curves cross their holes", "landscapex/export/page.py",
        '            "connectgaps": False,\n',
        '            "connectgaps": True,\n',
        PAGE + "test_trap_07_holes_stay_holes_and_are_counted[1]",
    ),
    Planted(
        "export 6", "holes are faces of the relief", "landscapex/export/paraview.py",
        "        cells = {_GHOSTS: np.where(",
        "        cells = {_GHOSTS: 0 * np.where(",
        PARAVIEW + "test_trap_07_what_is_not_finite_stays_and_is_hidden",
    ),
    Planted(
        "export 7", "points that are missing count as evaluated", "landscapex/export/reference.py",
        "            surface.evaluated, surface[column] * array.factor, array.missing\n",
        "            surface.evaluated, surface[column] * array.factor, 0.0\n",
        LOSS_LANDSCAPE + "test_trap_06_they_go_on_with_the_points_that_are_missing",
    ),
    Planted(
        "export 8", "heights of another column", "landscapex/export/paraview.py",
        "        z = relief.heights(surface[column])",
        '        z = relief.heights(surface["loss"])',
        PARAVIEW + "test_the_chosen_column_comes_first",
    ),
    Planted(
        "export 9", "colours of another column", "landscapex/export/page.py",
        "    heights = scale.forward(surface[column])\n    if scale.empty:\n",
        '    heights = scale.forward(surface["loss"])\n    if scale.empty:\n',
        PAGE + "test_a_chosen_scale_and_column_are_drawn",
    ),
    Planted(
        "export 10", "a row too far", "landscapex/export/table.py",
        "    evaluated = surface.evaluated.ravel().tolist()\n",
        "    evaluated = [True, *surface.evaluated.ravel().tolist()[:-1]]\n",
        TABLES + "test_trap_06_what_was_not_evaluated_is_told_from_nan",
    ),
    Planted(
        "export 11", "the first axis changes fastest", "landscapex/export/table.py",
        "places = product(*(axis.values for axis in surface.axes))",
        "places = (p[::-1] for p in product(*(axis.values for axis in surface.axes[::-1])))",
        TABLES + "test_trap_05_each_row_has_the_value_of_its_place",
    ),
    Planted(
        "export 12", "twelve digits", "landscapex/export/table.py",
        "surface[name].ravel().tolist() for name",
        "[float(f'{v:.12g}') for v in surface[name].ravel().tolist()] for name",
        TABLES + "test_a_table_gives_back_every_bit",
    ),
    Planted(
        "export 13", "no checksum", "landscapex/export/hdf5.py",
        "data=values, fletcher32=True)",
        "data=values)",
        LOSS_LANDSCAPE + "test_fault_07_a_damaged_number_of_ours_is_an_error",
    ),
    Planted(
        "export 14", "a script of the network", "landscapex/export/page.py",
        "include_plotlyjs=True,",
        'include_plotlyjs="cdn",',
        PAGE + "test_the_page_is_whole_and_asks_the_network_for_nothing",
    ),
    Planted(
        "export 15", "a title is markup", "landscapex/export/page.py",
        "    text = _html(wrapped(_title(title, [surface], [column]), 90))\n",
        "    text = wrapped(_title(title, [surface], [column]), 90)\n",
        PAGE + "test_text_of_a_user_is_text",
    ),
    Planted(
        "export 16", "somebody else's table is replaced", "landscapex/storage/files.py",
        "    if begin and not begin.startswith(marks):\n",
        "    if False:\n",
        TABLES + "test_a_table_of_somebody_else_is_kept",
    ),
    Planted(
        "export 17", "a factor beyond all numbers", "landscapex/export/paraview.py",
        "    if low < last - first < high:\n",
        "    if True:\n",
        PARAVIEW + "test_a_range_of_any_size_has_its_height",
    ),
    Planted(
        "export 18", "VTK hides points by a column", "landscapex/export/paraview.py",
        " or free == _GHOSTS:\n",
        ":\n",
        PARAVIEW + "test_columns_with_names_that_are_taken_keep_their_numbers",
    ),
]  # fmt: skip
