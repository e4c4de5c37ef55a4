"""Mistakes of published tools, planted."""

from __future__ import annotations

from .runner import Planted

AXES = "tests/test_axes.py::"
AXES_NORMALIZE = "tests/test_axes_normalize.py::"
EVALUATE = "tests/test_evaluate.py::"
GRID = "tests/test_grid.py::"
GUARD = "tests/test_guard.py::"
GUARD_EXCLUSIVE = "tests/test_guard_exclusive.py::"
LAYOUT = "tests/test_layout.py::"
METRICS = "tests/test_metrics.py::"
OBJECTIVE = "tests/test_objective.py::"
OBJECTIVE_GRADIENT = "tests/test_objective_gradient.py::"
OBJECTIVE_NORMS = "tests/test_objective_norms.py::"
PARAMETERS = "tests/test_parameters.py::"
PARAMETERS_FILTERS = "tests/test_parameters_filters.py::"
PARAMETERS_UNUSUAL = "tests/test_parameters_unusual.py::"
TORCH_MEASURE = "tests/test_torch_measure.py::"
ALL_BACK = GUARD + "test_trap_21_the_model_and_the_generators_come_back_bit_for_bit"

TRAPS = [
    Planted(
        "trap 1", "walk the grid with +=", "landscapex/model/guard.py",
        "self._writer.write(center, directions, coordinates)\n",
        "self._writer.write(self.space.gather(), directions, coordinates)\n",
        EVALUATE + "test_trap_01_every_row_is_in_its_place",
    ),
    Planted(
        "trap 1", "a state that one point leaves to the next", "landscapex/model/guard.py",
        "                b.copy_(start)\n",
        "                pass\n",
        GUARD + "test_trap_01_a_model_that_keeps_a_state_gives_the_same_loss_in_any_order",
    ),
    Planted(
        "trap 2", "restore by subtraction", "landscapex/model/guard.py",
        "original = self.center[e.offset : e.end].view(e.shape)",
        "original = p - (p - self.center[e.offset : e.end].view(e.shape))",
        EVALUATE + "test_trap_02_the_model_is_the_same_after_a_grid",
    ),
    Planted(
        "trap 3", "steps / n instead of n - 1", "landscapex/grids/grid.py",
        "values = (lo * (n - 1 - i) + hi * i) / (n - 1)",
        "values = lo + (hi - lo) * i / n",
        GRID + "test_trap_03_the_centre_is_a_node_of_an_odd_symmetric_grid",
    ),
    Planted(
        "trap 3", "the centre off its node by rounding", "landscapex/grids/grid.py",
        "values[np.abs(values) < _ROUNDING * max(abs(lo), abs(hi))] = 0.0",
        "values += 0.0",
        GRID + "test_trap_03_rounding_does_not_move_the_centre_off_its_node",
    ),
    Planted(
        "trap 4", "labels 0.5 for steps of 0.49", "landscapex/grids/grid.py",
        "np.stack([a[i] for a, i in",
        "np.stack([0.98 * a[i] for a, i in",
        EVALUATE + "test_trap_04_the_coordinate_is_the_displacement",
    ),
    Planted(
        "trap 5", "[y, x] for [x, y]", "landscapex/grids/grid.py",
        "np.unravel_index(np.arange(start, stop), self.shape)",
        "np.unravel_index(np.arange(start, stop), self.shape, order='F')",
        EVALUATE + "test_trap_05_alpha_is_the_first_dimension_from_evaluation_to_file",
    ),
    Planted(
        "trap 5", "[y, x] in the result", "landscapex/storage/dataset.py",
        "(dims, array[:, k].reshape(shape))",
        "(dims, array[:, k].reshape(shape, order='F'))",
        EVALUATE + "test_trap_05_alpha_is_the_first_dimension_from_evaluation_to_file",
    ),
    Planted(
        "trap 6", "a loss <= 0 counts as not computed", "landscapex/grids/filling.py",
        "self._done, self._values = self.journal.done.copy(), self.journal.values.copy()",
        "self._values = self.journal.values.copy(); self._done = self._values[:, 0] > 0",
        EVALUATE + "test_trap_06_no_loss_counts_as_not_computed",
    ),
    Planted(
        "trap 7", "NaN replaced by zero", "landscapex/storage/dataset.py",
        "array = np.where(mask[:, None], array, np.nan)",
        "array = np.where(mask[:, None], np.nan_to_num(array), np.nan)",
        EVALUATE + "test_trap_07_fault_11_what_was_computed_is_stored",
    ),
    Planted(
        "trap 8", "one norm per tensor", "landscapex/model/parameters.py",
        "rows.append(e.filter_rows() if by_filter else e.tensor_rows())",
        "rows.append(e.tensor_rows())",
        AXES_NORMALIZE + "test_trap_08_filters_get_the_length_of_the_same_filter_of_the_model",
    ),
    Planted(
        "trap 8", "transposed convolutions by axis 0", "landscapex/model/entries.py",
        "return (owner.groups if tuple(p.shape) == weight_shape else 0), 1",
        "return 0, 1",
        PARAMETERS_FILTERS + "test_trap_08_filters_are_the_weights_of_one_output_unit",
    ),
    Planted(
        "trap 8", "groups of transposed convolutions forgotten", "landscapex/model/entries.py",
        "self.offset + group * per_group * stride + out * inner, per_group, stride, inner",
        "self.offset + out * inner, per_group, stride, inner",
        PARAMETERS_FILTERS + "test_trap_08_filters_are_the_weights_of_one_output_unit",
    ),
    Planted(
        "trap 8", "only 2-D and 4-D tensors", "landscapex/model/entries.py",
        "if len(self.shape) <= 1 or self.size == 0:",
        "if len(self.shape) not in (2, 4) or self.size == 0:",
        PARAMETERS_FILTERS + "test_trap_08_filters_are_the_weights_of_one_output_unit",
    ),
    Planted(
        "trap 9", "biases are copied", "landscapex/axes.py",
        'own = at[e.offset : e.end] if ignore == "copy" else 0.0',
        "own = at[e.offset : e.end]",
        AXES_NORMALIZE + "test_trap_09_biases_and_norms_do_not_move_by_default",
    ),
    Planted(
        "trap 10", "zero filters are not counted", "landscapex/axes.py",
        "zero = int((norms[-1] == 0).sum())",
        "zero = 0",
        AXES_NORMALIZE + "test_trap_10_filters_that_are_zero_do_not_move_and_are_counted",
    ),
    Planted(
        "trap 10", "0 / 0", "landscapex/_fallback.py",
        "torch.where((d_norm == 0) | (theta_norm == 0), 0.0, theta_norm / d_norm)",
        "theta_norm / d_norm",
        AXES_NORMALIZE + "test_trap_10_a_direction_that_is_zero_in_a_filter_stays_zero",
        native=False,
    ),
    Planted(
        "trap 11", "uniform draws", "landscapex/model/drawn.py",
        "gaussian_(out, f\"{seed}/direction/{k}/{entry.name}\")",
        "out[:] = torch.rand(entry.size)",
        AXES + "test_trap_11_directions_are_gaussian",
    ),
    Planted(
        "trap 11", "the draw depends on the selection", "landscapex/model/drawn.py",
        'f"{seed}/direction/{k}/{entry.name}"',
        'f"{seed}/direction/{k}/{entry.offset}"',
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
        AXES_NORMALIZE + "test_trap_13_every_entry_of_a_filter_gets_the_same_factor",
        native=False,
    ),
    Planted(
        "trap 16", "buffers are directions", "landscapex/model/selection.py",
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
        OBJECTIVE_NORMS + "test_trap_17_batch_norm_uses_running_statistics_by_default",
    ),
    Planted(
        "trap 17", "running statistics are left behind", "landscapex/model/guard.py",
        "                    b.copy_(original)\n",
        "                    pass\n",
        GUARD + "test_trap_17_batch_norm_buffers_and_modes_are_restored",
    ),
    Planted(
        "trap 18", "unweighted mean of batch means", "landscapex/losses/totals.py",
        "        self._weights.append(weight if self._replayed else _read(weight))\n",
        "        self._weights.append(1.0)\n",
        OBJECTIVE + "test_trap_18_ragged_batches_give_the_mean_over_all_samples",
    ),
    Planted(
        "trap 18", "a sum over batches", "landscapex/losses/totals.py",
        "means.append(total / weight if weight else math.nan)",
        "means.append(total)",
        TORCH_MEASURE + "test_trap_18_total_of_ragged_batches_is_the_mean_over_samples",
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
        "trap 21", "gradients are lost", "landscapex/model/guard.py",
        "            p.grad = grad\n",
        "            p.grad = None\n",
        ALL_BACK + "[1-ValueError-success]",
    ),
    Planted(
        "trap 21", "requires_grad stays on", "landscapex/model/guard.py",
        "            p.requires_grad_(requires_grad)\n",
        "",
        GUARD + "test_trap_21_a_gradient_leaves_requires_grad_and_grad_alone",
    ),
    Planted(
        "trap 21", "the training flag changes", "landscapex/model/guard.py",
        "            m.training = training\n",
        "            m.training = False\n",
        ALL_BACK + "[5-ValueError-metric]",
    ),
    Planted(
        "trap 21", "hooks stay", "landscapex/model/guard.py",
        "                _put_back(getattr(m, name), hook)\n",
        "                pass\n",
        ALL_BACK + "[5-ValueError-loss]",
    ),
    Planted(
        "trap 21", "random generators move", "landscapex/model/guard.py",
        "generators.put_back(self._rng)",
        "pass",
        GUARD + "test_trap_21_a_loss_that_draws_leaves_the_generators_alone",
    ),
    Planted(
        "trap 21", "nothing is restored after Ctrl-C", "landscapex/model/guard.py",
        "            finally:\n                shield.up = True\n"
        "                snapshot.restore()\n        finally:\n            # reached",
        "            except Exception:\n                snapshot.restore()\n                raise\n"
        "        except Exception:\n            # reached",
        ALL_BACK + "[5-KeyboardInterrupt-loss]",
    ),
    Planted(
        "trap 22", "tied weights count twice", "landscapex/model/selection.py",
        "        by_memory.setdefault(key, ([], p))[0].append(name)",
        "        by_memory.setdefault(name, ([], p))[0].append(name)",
        PARAMETERS + "test_trap_22_tied_weights_are_one_parameter_and_move_once",
    ),
    Planted(
        "trap 23", "unused parameters crash", "landscapex/engine/eager.py",
        "allow_unused=True",
        "allow_unused=False",
        OBJECTIVE_GRADIENT + "test_trap_23_parameters_that_the_loss_does_not_use_have_gradient_zero",
    ),
    Planted(
        "trap 24", "no lock", "landscapex/model/guard.py",
        "        while not self.lock.acquire(timeout=_LOOK):\n",
        "        while not self.lock.acquire(timeout=0):\n            break\n",
        GUARD_EXCLUSIVE + "test_trap_24_two_objectives_of_one_model_share_its_lock",
    ),
    Planted(
        "trap 24", "one lock per objective", "landscapex/model/guard.py",
        "return _locks.setdefault(model, _ModelLock())",
        "return _ModelLock()",
        GUARD_EXCLUSIVE + "test_trap_24_eight_threads_on_one_objective_get_10000_right_losses",
    ),
    Planted(
        "trap 25", "lengths in float32", "landscapex/_directions.py",
        "        wide = part.double()\n",
        "        wide = part.float()\n",
        AXES + "test_trap_25_lengths_are_summed_in_float64",
    ),
    Planted(
        "trap 25", "lost steps are not said", "landscapex/grids/filling.py",
        "        if lost > 0.5 * moving:",
        "        if lost > 2 * moving:",
        EVALUATE + "test_trap_25_steps_below_the_resolution_of_the_parameters_warn",
    ),
    Planted(
        "trap 25", "sums in float32", "landscapex/losses/totals.py",
        "        return math.fsum(values)\n",
        "        return float(sum(torch.tensor(values)))\n",
        OBJECTIVE + "test_trap_25_losses_are_summed_in_float64",
    ),
    Planted(
        "trap 26", "the square of a complex number as its norm", "landscapex/engine/eager.py",
        "torch.view_as_real(p) if p.is_complex() else p, dtype=torch.float64\n",
        "p.real, dtype=torch.float64\n",
        OBJECTIVE_GRADIENT + "test_trap_26_the_gradient_of_a_complex_parameter",
    ),
    Planted(
        "trap 26", "a complex number counts once", "landscapex/model/entries.py",
        "entry_size = 2 if self.dtype.is_complex else 1",
        "entry_size = 1",
        PARAMETERS_UNUSUAL + "test_trap_26_filters_of_one_complex_entry_are_biases",
    ),
    Planted(
        "trap 27", "ten classes", "landscapex/losses/metrics.py",
        "        best, chosen = scores.max(axis)\n",
        "        best, chosen = scores.narrow(axis, 0, min(10, scores.shape[axis])).max(axis)\n",
        METRICS + "test_trap_27_metrics_take_any_number_of_classes",
    ),
    Planted(
        "trap 41", "pickle", "landscapex/storage/store.py",
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
