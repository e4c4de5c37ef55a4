"""Mistakes of the compiled engine, planted."""

from __future__ import annotations

from .runner import Planted

CAPTURE = "tests/test_capture.py::"
COMPILED = "tests/test_compiled.py::"
DEVICE = "landscapex/engine/device.py"
DEVICE_CHUNKS = "tests/test_device_driver.py::test_bits_do_not_depend_on_the_size_of_chunks"
DEVICE_ENGINE = "tests/test_device_engine.py::"
DEVICE_RUNNERS = "tests/test_device_driver.py::"
LOWERING = "tests/test_lowering.py::"
OPTIMIZE_FUSION = "tests/test_optimize_fusion.py::"
OPTIMIZE_WINOGRAD = "tests/test_optimize_winograd.py::"
SHARING = "tests/test_sharing.py::"

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
        OPTIMIZE_FUSION + "test_norm_residual_and_activation_join_the_convolution",
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
        OPTIMIZE_WINOGRAD + "test_other_convolutions_do_not[stride down]",
    ),
    Planted(
        "engine 13", "a maximum waits for a function that falls",
        "landscapex/engine/lowering/fusion.py",
        "    return act.name in _RISING and (act.name != \"leaky_relu\" or act.a >= 0)\n",
        "    return act.name in _RISING\n",
        OPTIMIZE_FUSION + "test_only_rising_functions_wait_for_the_maximum[falls on the left]",
    ),
    Planted(
        "engine 14", "a second halo changes the first", "landscapex/engine/lowering/moves.py",
        "    return Lanes(x.buffer, index, x.grid, fill)\n",
        "    return Lanes(x.buffer, index, x.grid, x.fill)\n",
        LOWERING + "test_moves_equal_torch",
    ),
    Planted(
        "engine 15", "sums of a smaller chunk are the last ones", DEVICE,
        "space.totals.cpu().numpy()[:, :count]",
        "space.totals.cpu().numpy()[:, -count:]",
        DEVICE_CHUNKS + "[(3, 4)-fp32]",
    ),
    Planted(
        "engine 15", "the last tiles are left out", DEVICE,
        "range(0, total, space.tiles)",
        "range(0, total - total % space.tiles, space.tiles)",
        DEVICE_CHUNKS + "[(2, 3)-fp32]",
    ),
    Planted(
        "engine 15", "later points have the weights of the first", DEVICE,
        "of_part = {i: a[part] for i, a in rows.items()}",
        "of_part = {i: a[: len(points[part])] for i, a in rows.items()}",
        DEVICE_CHUNKS + "[(3, 4)-fp32]",
    ),
    Planted(
        "engine 15", "later points are the first", DEVICE,
        "self._run_part(space, points[part], ",
        "self._run_part(space, points[: len(points[part])], ",
        DEVICE_CHUNKS + "[(3, 4)-fp32]",
    ),
    Planted(
        "engine 15", "later tiles are the first", DEVICE,
        "0 if x is None else x[first].data_ptr()",
        "0 if x is None else x[0].data_ptr()",
        DEVICE_CHUNKS + "[(2, 3)-fp32]",
    ),
    Planted(
        "engine 15", "later tiles are as full as the first", DEVICE,
        "self._valid[first:].data_ptr()",
        "self._valid.data_ptr()",
        DEVICE_CHUNKS + "[(2, 3)-fp32]",
    ),
    Planted(
        "engine 15", "later tiles belong to the group of the first", DEVICE,
        "self._owner[first:].data_ptr()",
        "self._owner.data_ptr()",
        DEVICE_CHUNKS + "[(2, 3)-fp32]",
    ),
    Planted(
        "engine 16", "sums of the call before", DEVICE,
        "        space.totals.zero_()\n",
        "",
        DEVICE_CHUNKS + "[(3, 4)-fp32]",
    ),
    Planted(
        "engine 16", "no halos", DEVICE,
        "            if not space.prepared:\n",
        "            if False:\n",
        DEVICE_RUNNERS + "test_a_chunk_begins_with_sums_of_zero",
    ),
    Planted(
        "engine 16", "the weights of another runner", DEVICE,
        "        self._bind()\n        sums, values = [], []\n",
        "        sums, values = [], []\n",
        DEVICE_RUNNERS + "test_runners_that_share_a_program_keep_their_own_weights[fixed-fp32]",
    ),
    Planted(
        "engine 17", "short memory ends a map", DEVICE,
        "            except torch.OutOfMemoryError:\n",
        "            except MemoryError:\n",
        DEVICE_ENGINE + "test_fault_20_short_memory_makes_calls_smaller_and_changes_no_number",
    ),
    Planted(
        "engine 17", "tensor cores are believed in", DEVICE,
        'if math != "fp32" and self.about.capability < _TENSOR_CORES:',
        'if math != "fp32" and self.about.capability < (0, 0):',
        DEVICE_ENGINE + "test_a_device_without_tensor_cores_says_so",
    ),
]  # fmt: skip
