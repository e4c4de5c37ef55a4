"""The defects: mistakes of published tools, and of tools that lose or falsify points."""

from __future__ import annotations

from .curvature import CURVATURE
from .runner import Planted
from .studies import STUDIES

AXES = "tests/test_axes.py::"
EVALUATE = "tests/test_evaluate.py::"
EXPORT = "tests/test_export.py::"
GRID = "tests/test_grid.py::"
GUARD = "tests/test_guard.py::"
ALL_BACK = GUARD + "test_trap_21_the_model_and_the_generators_come_back_bit_for_bit"
INTERRUPTS = "tests/test_interrupts.py::"
KILLS = "tests/test_kills.py::"
LAYOUT = "tests/test_layout.py::"
LOSSES = "tests/test_losses.py::"
METRICS = "tests/test_metrics.py::"
OBJECTIVE = "tests/test_objective.py::"
PARAMETERS = "tests/test_parameters.py::"
JOURNAL = "tests/test_journal_damage.py::"
CAPTURE = "tests/test_capture.py::"
COMPILED = "tests/test_compiled.py::"
LOWERING = "tests/test_lowering.py::"
OPTIMIZE = "tests/test_optimize.py::"
SHARING = "tests/test_sharing.py::"

TRAPS = [
    Planted(
        "trap 1", "walk the grid with +=", "landscapex/guard.py",
        "self._writer.write(center, directions, coordinates)\n",
        "self._writer.write(self.space.gather(), directions, coordinates)\n",
        EVALUATE + "test_trap_01_every_row_is_in_its_place",
    ),
    Planted(
        "trap 1", "a state that one point leaves to the next", "landscapex/guard.py",
        "                b.copy_(start)\n",
        "                pass\n",
        GUARD + "test_trap_01_a_model_that_keeps_a_state_gives_the_same_loss_in_any_order",
    ),
    Planted(
        "trap 2", "restore by subtraction", "landscapex/guard.py",
        "original = self.center[e.offset : e.end].view(e.shape)",
        "original = p - (p - self.center[e.offset : e.end].view(e.shape))",
        EVALUATE + "test_trap_02_the_model_is_the_same_after_a_grid",
    ),
    Planted(
        "trap 3", "steps / n instead of n - 1", "landscapex/grid.py",
        "values = (lo * (n - 1 - i) + hi * i) / (n - 1)",
        "values = lo + (hi - lo) * i / n",
        GRID + "test_trap_03_the_centre_is_a_node_of_an_odd_symmetric_grid",
    ),
    Planted(
        "trap 3", "the centre off its node by rounding", "landscapex/grid.py",
        "values[np.abs(values) < _ROUNDING * max(abs(lo), abs(hi))] = 0.0",
        "values += 0.0",
        GRID + "test_trap_03_rounding_does_not_move_the_centre_off_its_node",
    ),
    Planted(
        "trap 4", "labels 0.5 for steps of 0.49", "landscapex/grid.py",
        "np.stack([a[i] for a, i in",
        "np.stack([0.98 * a[i] for a, i in",
        EVALUATE + "test_trap_04_the_coordinate_is_the_displacement",
    ),
    Planted(
        "trap 5", "[y, x] for [x, y]", "landscapex/grid.py",
        "np.unravel_index(np.arange(start, stop), self.shape)",
        "np.unravel_index(np.arange(start, stop), self.shape, order='F')",
        EVALUATE + "test_trap_05_alpha_is_the_first_dimension_from_evaluation_to_file",
    ),
    Planted(
        "trap 5", "[y, x] in the result", "landscapex/results.py",
        "(dims, array[:, k].reshape(shape))",
        "(dims, array[:, k].reshape(shape, order='F'))",
        EVALUATE + "test_trap_05_alpha_is_the_first_dimension_from_evaluation_to_file",
    ),
    Planted(
        "trap 6", "a loss <= 0 counts as not computed", "landscapex/filling.py",
        "self._done, self._values = self.journal.done.copy(), self.journal.values.copy()",
        "self._values = self.journal.values.copy(); self._done = self._values[:, 0] > 0",
        EVALUATE + "test_trap_06_no_loss_counts_as_not_computed",
    ),
    Planted(
        "trap 7", "NaN replaced by zero", "landscapex/results.py",
        "array = np.where(mask[:, None], array, np.nan)",
        "array = np.where(mask[:, None], np.nan_to_num(array), np.nan)",
        EVALUATE + "test_trap_07_fault_11_what_was_computed_is_stored",
    ),
    Planted(
        "trap 8", "one norm per tensor", "landscapex/parameters.py",
        "rows.append(e.filter_rows() if by_filter else e.tensor_rows())",
        "rows.append(e.tensor_rows())",
        AXES + "test_trap_08_filters_get_the_length_of_the_same_filter_of_the_model",
    ),
    Planted(
        "trap 8", "transposed convolutions by axis 0", "landscapex/parameters.py",
        "return (owner.groups if tuple(p.shape) == weight_shape else 0), 1",
        "return 0, 1",
        PARAMETERS + "test_trap_08_filters_are_the_weights_of_one_output_unit",
    ),
    Planted(
        "trap 8", "groups of transposed convolutions forgotten", "landscapex/parameters.py",
        "self.offset + group * per_group * stride + out * inner, per_group, stride, inner",
        "self.offset + out * inner, per_group, stride, inner",
        PARAMETERS + "test_trap_08_filters_are_the_weights_of_one_output_unit",
    ),
    Planted(
        "trap 8", "only 2-D and 4-D tensors", "landscapex/parameters.py",
        "if len(self.shape) <= 1 or self.size == 0:",
        "if len(self.shape) not in (2, 4) or self.size == 0:",
        PARAMETERS + "test_trap_08_filters_are_the_weights_of_one_output_unit",
    ),
    Planted(
        "trap 9", "biases are copied", "landscapex/axes.py",
        'own = center[e.offset : e.end] if ignore == "copy" else 0.0',
        "own = center[e.offset : e.end]",
        AXES + "test_trap_09_biases_and_norms_do_not_move_by_default",
    ),
    Planted(
        "trap 10", "zero filters are not counted", "landscapex/axes.py",
        "zero = int((norms[-1] == 0).sum())",
        "zero = 0",
        AXES + "test_trap_10_filters_that_are_zero_do_not_move_and_are_counted",
    ),
    Planted(
        "trap 10", "0 / 0", "landscapex/_fallback.py",
        "torch.where((d_norm == 0) | (theta_norm == 0), 0.0, theta_norm / d_norm)",
        "theta_norm / d_norm",
        AXES + "test_trap_10_a_direction_that_is_zero_in_a_filter_stays_zero",
        native=False,
    ),
    Planted(
        "trap 11", "uniform draws", "landscapex/axes.py",
        "gaussian_(vectors[k, e.offset : e.end], f\"{seed}/direction/{k}/{e.name}\")",
        "vectors[k, e.offset : e.end] = torch.rand(e.size)",
        AXES + "test_trap_11_directions_are_gaussian",
    ),
    Planted(
        "trap 11", "the draw depends on the selection", "landscapex/axes.py",
        'f"{seed}/direction/{k}/{e.name}"',
        'f"{seed}/direction/{k}/{e.offset}"',
        AXES + "test_trap_11_an_entry_depends_on_seed_direction_and_name_alone",
    ),
    Planted(
        "trap 12", "divided by the norm instead of its square", "landscapex/axes.py",
        "float(pair[0, 1] / pair[0, 0])",
        "float(pair[0, 1] / pair[0, 0].sqrt())",
        AXES + "test_trap_12_orthogonal_directions_are_orthogonal",
    ),
    Planted(
        "trap 13", "norms recomputed while rescaling", "landscapex/_fallback.py",
        "result = torch.where(factor == 0, 0.0, _float64(d) * factor)",
        "result = torch.where(factor == 0, 0.0, _float64(d) * factor); h = d.shape[-1] // 2; "
        "result[..., h:] = _float64(d)[..., h:] * theta_norm / "
        "torch.cat([result[..., :h], _float64(d)[..., h:]], -1).norm()",
        AXES + "test_trap_13_every_entry_of_a_filter_gets_the_same_factor",
        native=False,
    ),
    Planted(
        "trap 16", "buffers are directions", "landscapex/parameters.py",
        "for name, p in model.named_parameters(remove_duplicate=False):\n        key:",
        "for name, p in [*model.named_parameters(remove_duplicate=False), *("
        "(n, b.requires_grad_()) for n, b in model.named_buffers() if b.is_floating_point())]:\n"
        "        key:",
        AXES + "test_trap_16_buffers_are_no_directions",
    ),
    Planted(
        "trap 17", "evaluation in training mode", "landscapex/engine/eager.py",
        "            if module.training is not training:\n",
        "            if False:\n",
        OBJECTIVE + "test_trap_17_batch_norm_uses_running_statistics_by_default",
    ),
    Planted(
        "trap 17", "running statistics are left behind", "landscapex/guard.py",
        "                    b.copy_(original)\n",
        "                    pass\n",
        GUARD + "test_trap_17_batch_norm_buffers_and_modes_are_restored",
    ),
    Planted(
        "trap 18", "unweighted mean of batch means", "landscapex/totals.py",
        "        self._weights.append(terms.weight)\n",
        "        self._weights.append(1.0)\n",
        OBJECTIVE + "test_trap_18_ragged_batches_give_the_mean_over_all_samples",
    ),
    Planted(
        "trap 18", "a sum over batches", "landscapex/totals.py",
        "means.append(total / weight if weight else math.nan)",
        "means.append(total)",
        LOSSES + "test_trap_18_total_of_ragged_batches_is_the_mean_over_samples",
    ),
    Planted(
        "trap 18", "gradients of batches are summed", "landscapex/engine/eager.py",
        "        total /= weights\n",
        "",
        OBJECTIVE + "test_trap_18_ragged_batches_give_the_mean_over_all_samples",
    ),
    Planted(
        "trap 19", "each pass draws other batches", "landscapex/batches.py",
        "for index, batch in enumerate(self._kept):",
        "for index, batch in enumerate(self._kept[torch.randint(2, ()).item():]):",
        OBJECTIVE + "test_trap_19_a_loader_that_shuffles_and_drops_is_frozen",
    ),
    Planted(
        "trap 20", "only the first batch", "landscapex/batches.py",
        "for index, batch in enumerate(self._kept):",
        "for index, batch in enumerate(self._kept[:1]):",
        OBJECTIVE + "test_trap_20_every_batch_counts",
    ),
    Planted(
        "trap 21", "gradients are lost", "landscapex/guard.py",
        "            p.grad = grad\n",
        "            p.grad = None\n",
        ALL_BACK + "[1-ValueError-success]",
    ),
    Planted(
        "trap 21", "requires_grad stays on", "landscapex/guard.py",
        "            p.requires_grad_(requires_grad)\n",
        "",
        GUARD + "test_trap_21_a_gradient_leaves_requires_grad_and_grad_alone",
    ),
    Planted(
        "trap 21", "the training flag changes", "landscapex/guard.py",
        "            m.training = training\n",
        "            m.training = False\n",
        ALL_BACK + "[5-ValueError-metric]",
    ),
    Planted(
        "trap 21", "hooks stay", "landscapex/guard.py",
        "                _put_back(getattr(m, name), hook)\n",
        "                pass\n",
        ALL_BACK + "[5-ValueError-loss]",
    ),
    Planted(
        "trap 21", "random generators move", "landscapex/guard.py",
        "_set_rng_state(self._rng)",
        "pass",
        GUARD + "test_trap_21_a_loss_that_draws_leaves_the_generators_alone",
    ),
    Planted(
        "trap 21", "nothing is restored after Ctrl-C", "landscapex/guard.py",
        "            finally:\n                shield.up = True\n"
        "                snapshot.restore()\n        finally:\n            # reached",
        "            except Exception:\n                snapshot.restore()\n                raise\n"
        "        except Exception:\n            # reached",
        ALL_BACK + "[5-KeyboardInterrupt-loss]",
    ),
    Planted(
        "trap 22", "tied weights count twice", "landscapex/parameters.py",
        "        by_memory.setdefault(key, ([], p))[0].append(name)",
        "        by_memory.setdefault(name, ([], p))[0].append(name)",
        PARAMETERS + "test_trap_22_tied_weights_are_one_parameter_and_move_once",
    ),
    Planted(
        "trap 23", "unused parameters crash", "landscapex/engine/eager.py",
        "allow_unused=True",
        "allow_unused=False",
        OBJECTIVE + "test_trap_23_parameters_that_the_loss_does_not_use_have_gradient_zero",
    ),
    Planted(
        "trap 24", "no lock", "landscapex/guard.py",
        "        with self.lock:\n            try:",
        "        if True:\n            try:",
        GUARD + "test_trap_24_two_objectives_of_one_model_share_its_lock",
    ),
    Planted(
        "trap 24", "one lock per objective", "landscapex/guard.py",
        "return _locks.setdefault(model, _ModelLock())",
        "return _ModelLock()",
        GUARD + "test_trap_24_eight_threads_on_one_objective_get_10000_right_losses",
    ),
    Planted(
        "trap 25", "lengths in float32", "landscapex/_directions.py",
        "        wide = part.double()\n",
        "        wide = part.float()\n",
        AXES + "test_trap_25_lengths_are_summed_in_float64",
    ),
    Planted(
        "trap 25", "lost steps are not said", "landscapex/filling.py",
        "        if lost > 0.5 * moving:",
        "        if lost > 2 * moving:",
        EVALUATE + "test_trap_25_steps_below_the_resolution_of_the_parameters_warn",
    ),
    Planted(
        "trap 25", "sums in float32", "landscapex/totals.py",
        "        return math.fsum(values)\n",
        "        return float(sum(torch.tensor(values)))\n",
        OBJECTIVE + "test_trap_25_losses_are_summed_in_float64",
    ),
    Planted(
        "trap 26", "the square of a complex number as its norm", "landscapex/engine/eager.py",
        "torch.view_as_real(p) if p.is_complex() else p, dtype=torch.float64\n",
        "p.real, dtype=torch.float64\n",
        OBJECTIVE + "test_trap_26_the_gradient_of_a_complex_parameter",
    ),
    Planted(
        "trap 26", "a complex number counts once", "landscapex/parameters.py",
        "entry_size = 2 if self.dtype.is_complex else 1",
        "entry_size = 1",
        PARAMETERS + "test_trap_26_filters_of_one_complex_entry_are_biases",
    ),
    Planted(
        "trap 27", "ten classes", "landscapex/metrics.py",
        "        best, chosen = scores.max(axis)\n",
        "        best, chosen = scores.narrow(axis, 0, min(10, scores.shape[axis])).max(axis)\n",
        METRICS + "test_trap_27_metrics_take_any_number_of_classes",
    ),
    Planted(
        "trap 41", "pickle", "landscapex/store.py",
        "import hashlib\n",
        "import hashlib\nimport pickle\n",
        LAYOUT + "test_trap_41_nothing_unpickles",
    ),
    Planted(
        "trap 42", "torchvision as a dependency", "pyproject.toml",
        '  "typer",\n',
        '  "typer",\n  "torchvision",\n',
        LAYOUT + "test_trap_42_what_must_not_be_a_dependency_is_none",
    ),
]  # fmt: skip

FAULTS = [
    Planted(
        "fault 1", "points are acknowledged before they are kept", "landscapex/filling.py",
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
        "fault 4", "a torn line stays", "landscapex/journal.py",
        "                os.truncate(path, contents.end)\n",
        "",
        JOURNAL + "test_fault_04_a_torn_line_is_cut_at_every_length",
    ),
    Planted(
        "fault 5", "another run is mixed in", "landscapex/header.py",
        "for name, (a, b) in pairs.items() if a != b]",
        "for name, (a, b) in pairs.items() if a is None]",
        EVALUATE + "test_fault_05_another_run_is_never_mixed_in",
    ),
    Planted(
        "fault 5", "data do not count", "landscapex/session.py",
        '            "data": _sha256(*(',
        '            "no": _sha256(*(',
        EVALUATE + "test_fault_05_another_run_is_never_mixed_in[journal-data]",
    ),
    Planted(
        "fault 5", "buffers do not count", "landscapex/session.py",
        "_tensor_parts(dict(model.named_buffers()))",
        "_tensor_parts({})",
        EVALUATE + "test_fault_05_another_run_is_never_mixed_in[journal-buffers]",
    ),
    Planted(
        "fault 10", "NaN in the centre", "landscapex/session.py",
        "            if not bool(torch.isfinite(t).all())\n",
        "            if False\n",
        OBJECTIVE + "test_fault_10_a_centre_that_is_not_finite_is_refused_by_name",
    ),
    Planted(
        "fault 11", "NaN goes unsaid", "landscapex/filling.py",
        "    if result.nonfinite:\n",
        "    if False:\n",
        EVALUATE + "test_trap_07_fault_11_what_was_computed_is_stored",
    ),
    Planted(
        "fault 12", "reversed grids", "landscapex/grid.py",
        "    if lo >= hi:\n",
        "    if False:\n",
        GRID + "test_fault_12_a_bad_grid_is_refused_with_its_value",
    ),
    Planted(
        "fault 12", "infinite grids", "landscapex/grid.py",
        "    if not (math.isfinite(lo) and math.isfinite(hi)):\n",
        "    if False:\n",
        GRID + "test_fault_12_a_bad_grid_is_refused_with_its_value",
    ),
    Planted(
        "fault 12", "grids of one point", "landscapex/grid.py",
        "        if n < 2:\n",
        "        if n < 1:\n",
        GRID + "test_fault_12_a_bad_grid_is_refused_with_its_value",
    ),
    Planted(
        "fault 13", "parallel directions", "landscapex/_directions.py",
        "            if abs(c := float(cosines[i, j])) > PARALLEL:",
        "            if abs(c := float(cosines[i, j])) > 2:",
        AXES + "test_fault_13_directions_that_span_nothing_are_refused",
    ),
    Planted(
        "fault 14", "a mean over nothing", "landscapex/totals.py",
        "            if m == 0 and not weight:\n",
        "            if False:\n",
        OBJECTIVE + "test_fault_14_only_ignored_labels_are_no_data",
    ),
    Planted(
        "fault 15", "an exhausted generator is read again", "landscapex/batches.py",
        '    if once and cache == "none":\n',
        "    if False:\n",
        OBJECTIVE + "test_fault_15_a_generator_cannot_be_read_again",
    ),
    Planted(
        "fault 16", "a random loss passes", "landscapex/session.py",
        "            if not abs(a - b) <= REPEAT_TOLERANCE * max(abs(a), abs(b)):\n",
        "            if False:\n",
        OBJECTIVE + "test_fault_16_a_loss_that_differs_from_itself_is_refused_with_its_culprit",
    ),
    Planted(
        "fault 16", "each point sees other draws", "landscapex/engine/eager.py",
        "        if not self.common_seed:\n",
        "        if True:\n",
        OBJECTIVE + "test_fault_16_without_the_check_every_point_sees_the_same_draws",
    ),
    Planted(
        "fault 17", "an error does not say where", "landscapex/engine/eager.py",
        'error.add_note("landscapex: at "',
        'str("landscapex: at "',
        EVALUATE + "test_fault_17_an_error_of_the_loss_says_where_and_keeps_the_journal",
    ),
    Planted(
        "fault 18", "a vector as a loss", "landscapex/losses.py",
        "        if value.ndim and not per_sample:\n",
        "        if False:\n",
        OBJECTIVE + "test_fault_18_what_is_not_a_loss_is_refused",
    ),
    Planted(
        "fault 24", "meta tensors", "landscapex/parameters.py",
        "        elif p.is_meta:\n",
        "        elif False:\n",
        PARAMETERS + "test_fault_24_parameters_that_cannot_be_moved_are_refused_by_name",
    ),
    Planted(
        "fault 24", "frozen parameters move", "landscapex/parameters.py",
        "trainable = [names for names, p in everything.items() if p.requires_grad]",
        "trainable = list(everything)",
        PARAMETERS + "test_fault_24_frozen_parameters_stay_out_unless_all_are_frozen",
    ),
    Planted(
        "fault 25", "memory layout", "landscapex/parameters.py",
        "if p.is_conj() or p.is_neg() or not p.is_contiguous()",
        "if p.is_conj() or p.is_neg()",
        PARAMETERS + "test_fault_25_parameters_in_any_memory_layout_move_entry_by_entry",
    ),
    Planted(
        "fault 25", "expanded tensors", "landscapex/parameters.py",
        "        if any(n > 1 and s == 0 for",
        "        if any(n > 1 and s < 0 for",
        PARAMETERS + "test_fault_24_parameters_that_cannot_be_moved_are_refused_by_name",
    ),
    Planted(
        "fault 26", "a forked child waits for ever", "landscapex/guard.py",
        "os.register_at_fork(after_in_child=_forget_locks)",
        "",
        GUARD + "test_fault_26_a_child_forked_during_an_evaluation_does_not_wait_for_ever",
    ),
    Planted(
        "fault 27", "a training step goes unseen", "landscapex/guard.py",
        "            if any(writes):\n",
        "            if False:\n",
        GUARD + "test_fault_27_parameters_that_do_not_move_must_not_change_either",
    ),
    Planted(
        "fault 27", "writes to .data go unseen", "landscapex/guard.py",
        "            if not torch.equal(bits, right):\n",
        "            if False:\n",
        GUARD + "test_fault_27_a_model_changed_by_its_loss_is_an_error",
    ),
    Planted(
        "fault 29", "a missing package is any ImportError", "landscapex/_extras.py",
        "    except ImportError as error:\n",
        "    except MissingExtraError as error:\n",
        EXPORT + "test_fault_29_a_missing_extra_is_named_with_the_command_that_installs_it",
    ),
]  # fmt: skip

ENGINE = [
    Planted(
        "engine 1", "the direction of a tied weight is ignored", "landscapex/engine/capture.py",
        'owners = named.get(key, [(name, "constant", tensor)])',
        'owners = [(name, "constant" if constant else "parameter", tensor)]',
        CAPTURE + "test_trap_22_tied_weights_are_one_slot_under_their_first_name",
    ),
    Planted(
        "engine 2", "relu is called affine", "landscapex/engine/sharing.py",
        '"pixel_shuffle pixel_unshuffle clone ',
        '"relu pixel_shuffle pixel_unshuffle clone ',
        SHARING + "test_labels_hold_in_float64",
    ),
    Planted(
        "engine 3", "a shift is lost when it is folded", "landscapex/engine/lowering/fusion.py",
        "    if result is not None and shift is not None:\n",
        "    if False:\n",
        OPTIMIZE + "test_norm_residual_and_activation_join_the_convolution",
    ),
    Planted(
        "engine 4", "weights are packed in another order", "landscapex/engine/packing.py",
        "taken = source[term.index]",
        "taken = source[np.sort(term.index)]",
        COMPILED + "test_surface_equals_the_model_in_float64[lenet]",
    ),
    Planted(
        "engine 5", "lanes without a sample are counted", "landscapex/engine/packing.py",
        "valid += [min(lanes, size - t * lanes) for t in range(count)]",
        "valid += [lanes] * count",
        COMPILED + "test_surface_equals_the_model_in_float64[mlp]",
    ),
    Planted(
        "engine 6", "the set of one direction is used for another", "landscapex/engine/packing.py",
        "[s[k] if s and k < len(s)",
        "[s[-k] if s and k < len(s)",
        COMPILED + "test_surface_equals_the_model_in_float64[mlp]",
    ),
    Planted(
        "engine 7", "ignored labels count", "landscapex/engine/captured.py",
        "counted = labels[labels != denominator.ignore_index]",
        "counted = labels",
        COMPILED + "test_batches_weigh_what_they_weigh_in_torch[ignore_index]",
    ),
    Planted(
        "engine 8", "programs are trusted", "landscapex/engine/choice.py",
        "            validate(compiled, snapshot, center, directions, points)\n",
        "",
        COMPILED
        + "test_weight_that_stands_still_in_the_graph_is_noticed_away_from_the_centre",
    ),
    Planted(
        "engine 9", "programs are compared at the centre only", "landscapex/engine/validation.py",
        "return np.concatenate([np.zeros((1, len(low))), drawn])",
        "return np.zeros((1, len(low)))",
        COMPILED
        + "test_weight_that_stands_still_in_the_graph_is_noticed_away_from_the_centre",
    ),
    Planted(
        "engine 9", "a copy in float64 that is another model is believed",
        "landscapex/engine/validation.py",
        "    if exact is not None and COPY < _distance(single, exact) < np.inf:\n",
        "    if False:\n",
        COMPILED
        + "test_weight_that_stands_still_in_the_graph_is_noticed_away_from_the_centre",
    ),
    Planted(
        "engine 10", "a program outlives its buffers", "landscapex/engine/preparation.py",
        "if structure != self._structure or digest.hexdigest() != self._bytes:",
        "if structure != self._structure:",
        COMPILED + "test_training_between_two_surfaces_is_seen",
    ),
    Planted(
        "engine 11", "a plain mean of batch means", "landscapex/engine/preparation.py",
        "    return weights[:, 0], ",
        "    return np.ones(len(weights)), ",
        COMPILED + "test_batches_weigh_what_they_weigh_in_torch[function]",
    ),
    Planted(
        "engine 12", "Winograd on rows that do not follow each other",
        "landscapex/engine/lowering/winograd.py",
        " or _rows(step.at, image) != row:",
        ":",
        OPTIMIZE + "test_other_convolutions_do_not[stride down]",
    ),
    Planted(
        "engine 13", "a maximum waits for a function that falls",
        "landscapex/engine/lowering/fusion.py",
        "    return act.name in _RISING and (act.name != \"leaky_relu\" or act.a >= 0)\n",
        "    return act.name in _RISING\n",
        OPTIMIZE + "test_only_rising_functions_wait_for_the_maximum[falls on the left]",
    ),
    Planted(
        "engine 14", "a second halo changes the first", "landscapex/engine/lowering/moves.py",
        "    return Lanes(x.buffer, index, x.grid, fill)\n",
        "    return Lanes(x.buffer, index, x.grid, x.fill)\n",
        LOWERING + "test_moves_equal_torch",
    ),
]  # fmt: skip

TABLE = TRAPS + FAULTS + ENGINE + CURVATURE + STUDIES
