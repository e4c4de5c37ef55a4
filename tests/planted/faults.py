"""Points that are lost, falsified or mixed, planted."""

from __future__ import annotations

from .runner import Planted

AXES_GIVEN = "tests/test_axes_given.py::"
EVALUATE = "tests/test_evaluate.py::"
EXPORT = "tests/test_export.py::"
GRID = "tests/test_grid.py::"
GUARD_CHANGES = "tests/test_guard_changes.py::"
GUARD_EXCLUSIVE = "tests/test_guard_exclusive.py::"
INTERRUPTS = "tests/test_interrupts.py::"
JOURNAL = "tests/test_journal_damage.py::"
KILLS = "tests/test_kills.py::"
OBJECTIVE_REFUSED = "tests/test_objective_refused.py::"
PARAMETERS = "tests/test_parameters.py::"
PARAMETERS_UNUSUAL = "tests/test_parameters_unusual.py::"
RESUME = "tests/test_resume.py::"

FAULTS = [
    Planted(
        "fault 1", "points are acknowledged before they are kept", "landscapex/grids/filling.py",
        "            self.journal.append(start, values)\n",
        "            _ = start % 32 and self.journal.append(start, values)\n",
        KILLS + "test_fault_01_killed_surfaces_lose_nothing_and_go_on_to_the_same_bits",
    ),
    Planted(
        "fault 2", "signals are forgotten", "landscapex/interrupts.py",
        "        self.signum = signum\n",
        "        self.signum = None\n",
        INTERRUPTS + "test_fault_02_a_stopped_surface_keeps_its_points",
    ),
    Planted(
        "fault 2", "a slow point is never given up", "landscapex/interrupts.py",
        "            raise Abandon\n",
        "            return\n",
        INTERRUPTS + "test_fault_02_a_slow_point_is_given_up",
    ),
    Planted(
        "fault 2", "Ctrl-C waits for the data", "landscapex/interrupts.py",
        "        if not self.armed:\n",
        "        if False:\n",
        INTERRUPTS + "test_fault_02_ctrl_c_before_the_first_point_stops_at_once",
    ),
    Planted(
        "fault 4", "a torn line stays", "landscapex/storage/journal.py",
        "                os.truncate(path, contents.end)\n",
        "",
        JOURNAL + "test_fault_04_a_torn_line_is_cut_at_every_length",
    ),
    Planted(
        "fault 5", "another run is mixed in", "landscapex/storage/header.py",
        "for name, (a, b) in pairs.items() if a != b]",
        "for name, (a, b) in pairs.items() if a is None]",
        RESUME + "test_fault_05_another_run_is_never_mixed_in",
    ),
    Planted(
        "fault 5", "data do not count", "landscapex/session.py",
        '            "data": _sha256(*(',
        '            "no": _sha256(*(',
        RESUME + "test_fault_05_another_run_is_never_mixed_in[journal-data]",
    ),
    Planted(
        "fault 5", "buffers do not count", "landscapex/session.py",
        "_tensor_parts(dict(model.named_buffers()))",
        "_tensor_parts({})",
        RESUME + "test_fault_05_another_run_is_never_mixed_in[journal-buffers]",
    ),
    Planted(
        "fault 10", "NaN in the centre", "landscapex/session.py",
        "            if not bool(torch.isfinite(t).all())\n",
        "            if False\n",
        OBJECTIVE_REFUSED + "test_fault_10_a_centre_that_is_not_finite_is_refused_by_name",
    ),
    Planted(
        "fault 11", "NaN goes unsaid", "landscapex/grids/filling.py",
        "    if result.nonfinite:\n",
        "    if False:\n",
        EVALUATE + "test_trap_07_fault_11_what_was_computed_is_stored",
    ),
    Planted(
        "fault 12", "reversed grids", "landscapex/grids/grid.py",
        "    if lo >= hi:\n",
        "    if False:\n",
        GRID + "test_fault_12_a_bad_grid_is_refused_with_its_value",
    ),
    Planted(
        "fault 12", "infinite grids", "landscapex/grids/grid.py",
        "    if not (math.isfinite(lo) and math.isfinite(hi)):\n",
        "    if False:\n",
        GRID + "test_fault_12_a_bad_grid_is_refused_with_its_value",
    ),
    Planted(
        "fault 12", "grids of one point", "landscapex/grids/grid.py",
        "        if n < 2:\n",
        "        if n < 1:\n",
        GRID + "test_fault_12_a_bad_grid_is_refused_with_its_value",
    ),
    Planted(
        "fault 13", "parallel directions", "landscapex/_directions.py",
        "            if abs(c := float(cosines[i, j])) > PARALLEL:",
        "            if abs(c := float(cosines[i, j])) > 2:",
        AXES_GIVEN + "test_fault_13_directions_that_span_nothing_are_refused",
    ),
    Planted(
        "fault 14", "a mean over nothing", "landscapex/losses/totals.py",
        "            if m == 0 and not weight:\n",
        "            if False:\n",
        OBJECTIVE_REFUSED + "test_fault_14_only_ignored_labels_are_no_data",
    ),
    Planted(
        "fault 15", "an exhausted generator is read again", "landscapex/batches.py",
        '    if once and cache == "none":\n',
        "    if False:\n",
        OBJECTIVE_REFUSED + "test_fault_15_a_generator_cannot_be_read_again",
    ),
    Planted(
        "fault 16", "a random loss passes", "landscapex/session.py",
        "            if not abs(a - b) <= REPEAT_TOLERANCE * max(abs(a), abs(b)):\n",
        "            if False:\n",
        OBJECTIVE_REFUSED + "test_fault_16_a_loss_that_differs_from_itself_is_refused_with_its_culprit",
    ),
    Planted(
        "fault 16", "each point sees other draws", "landscapex/engine/eager.py",
        "        if not self.common_seed:\n",
        "        if True:\n",
        OBJECTIVE_REFUSED + "test_fault_16_without_the_check_every_point_sees_the_same_draws",
    ),
    Planted(
        "fault 17", "an error does not say where", "landscapex/engine/eager.py",
        'error.add_note("landscapex: at "',
        'str("landscapex: at "',
        RESUME + "test_fault_17_an_error_of_the_loss_says_where_and_keeps_the_journal",
    ),
    Planted(
        "fault 18", "a vector as a loss", "landscapex/losses/weighting.py",
        "        if value.ndim and not per_sample:\n",
        "        if False:\n",
        OBJECTIVE_REFUSED + "test_fault_18_what_is_not_a_loss_is_refused",
    ),
    Planted(
        "fault 24", "meta tensors", "landscapex/model/selection.py",
        "        elif p.is_meta:\n",
        "        elif False:\n",
        PARAMETERS_UNUSUAL + "test_fault_24_parameters_that_cannot_be_moved_are_refused_by_name",
    ),
    Planted(
        "fault 24", "frozen parameters move", "landscapex/model/selection.py",
        "trainable = [names for names, p in everything.items() if p.requires_grad]",
        "trainable = list(everything)",
        PARAMETERS + "test_fault_24_frozen_parameters_stay_out_unless_all_are_frozen",
    ),
    Planted(
        "fault 25", "memory layout", "landscapex/model/parameters.py",
        "if p.is_conj() or p.is_neg() or not p.is_contiguous()",
        "if p.is_conj() or p.is_neg()",
        PARAMETERS_UNUSUAL + "test_fault_25_parameters_in_any_memory_layout_move_entry_by_entry",
    ),
    Planted(
        "fault 25", "expanded tensors", "landscapex/model/selection.py",
        "        if any(n > 1 and s == 0 for",
        "        if any(n > 1 and s < 0 for",
        PARAMETERS_UNUSUAL + "test_fault_24_parameters_that_cannot_be_moved_are_refused_by_name",
    ),
    Planted(
        "fault 26", "a forked child waits for ever", "landscapex/model/guard.py",
        "os.register_at_fork(after_in_child=_forget_locks)",
        "",
        GUARD_EXCLUSIVE + "test_fault_26_a_child_forked_during_an_evaluation_does_not_wait_for_ever",
    ),
    Planted(
        "fault 27", "a training step goes unseen", "landscapex/model/guard.py",
        "            if any(writes):\n",
        "            if False:\n",
        GUARD_CHANGES + "test_fault_27_parameters_that_do_not_move_must_not_change_either",
    ),
    Planted(
        "fault 27", "writes to .data go unseen", "landscapex/model/guard.py",
        "            if not torch.equal(bits, right):\n",
        "            if False:\n",
        GUARD_CHANGES + "test_fault_27_a_model_changed_by_its_loss_is_an_error",
    ),
    Planted(
        "fault 29", "a missing package is any ImportError", "landscapex/_extras.py",
        "    except ImportError as error:\n",
        "    except MissingExtraError as error:\n",
        EXPORT + "test_fault_29_a_missing_extra_is_named_with_the_command_that_installs_it",
    ),
]  # fmt: skip
