"""Defects in trajectories, interpolation and what is drawn from runs."""

from __future__ import annotations

from .runner import Planted

TRAJECTORIES = "tests/test_trajectories.py::"
TRAJECTORY_CHECKPOINTS = "tests/test_trajectory_checkpoints.py::"
TRAJECTORY_RESULTS = "tests/test_trajectory_results.py::"
RECORDER = "tests/test_recorder.py::"
RECORDER_RESUME = "tests/test_recorder_resume.py::"
RECORDER_CALLBACKS = "tests/test_recorder_callbacks.py::"
RUNS = "tests/test_runs.py::"
INTERPOLATION = "tests/test_interpolation.py::"
LINE_MEASURES = "tests/test_line_measures.py::"
PROJECTIONS = "tests/test_projections.py::"
CONTROLS = "tests/test_controls.py::"
HISTOGRAMS = "tests/test_histograms.py::"

STUDIES = [
    Planted(
        "trap 14", "projection divided by the length", "landscapex/trajectories/trajectory.py",
        "coordinates = torch.linalg.solve(vectors @ vectors.T, shadows)",
        "coordinates = shadows / torch.linalg.vector_norm(vectors, dim=1)",
        TRAJECTORIES + "test_trap_14_c3_coordinates_are_by_least_squares",
    ),
    Planted(
        "trap 14", "coordinates along axes that are not orthogonal", "landscapex/trajectories/principal.py",
        "coordinates = torch.linalg.solve(inner, products).T",
        "coordinates = (products / inner.diagonal()[:, None]).T",
        TRAJECTORIES + "test_trap_14_coordinates_in_a_skewed_plane_come_back",
    ),
    Planted(
        "trap 15", "coordinates from the mean, the plane through the last point", "landscapex/trajectories/principal.py",
        "products += d @ (block - block[origin]).T",
        "products += d @ (block - block.mean(0)).T",
        TRAJECTORY_CHECKPOINTS + "test_trap_15_the_plane_goes_through_the_checkpoint_and_not_through_the_mean",
    ),
    Planted(
        "trap 15", "the surface around the live weights", "landscapex/grids/filling.py",
        "return options.directions.center",
        "return None",
        TRAJECTORY_CHECKPOINTS + "test_trap_15_the_surface_around_a_trajectory_starts_at_its_origin",
    ),
    Planted(
        "trap 15", "distance from the plane as a difference of squares", "landscapex/trajectories/principal.py",
        "squares[0] += (moved - coordinates @ d).square().sum(1)",
        "squares[0] += moved.square().sum(1) - (coordinates @ d).square().sum(1)",
        TRAJECTORIES + "test_residuals_near_the_plane_do_not_cancel",
    ),
    Planted(
        "trap 15", "a straight line has a second component", "landscapex/trajectories/principal.py",
        "noise = 8 * len(index) * torch.finfo(torch.float64).eps * float(values[0])",
        "noise = 0.0",
        TRAJECTORIES + "test_a_straight_line_has_one_component",
    ),
    Planted(
        "trap 15", "a path over the surface around other weights", "landscapex/_pictures/trajectory.py",
        "if ours is not None and known.get(name) != ours:",
        'if name == "directions" and known.get(name) != ours:',
        TRAJECTORY_RESULTS + "test_a_path_is_drawn_over_its_own_plane_alone",
    ),
    Planted(
        "rounding", "other numbers where checkpoints do not fit into memory", "landscapex/trajectories/principal.py",
        "out[first - start : last - start].copy_(part.to(self.space.dtype))",
        "out[first - start : last - start].copy_(part)",
        TRAJECTORY_CHECKPOINTS + "test_numbers_do_not_depend_on_what_fits_into_memory",
    ),
    Planted(
        "memory", "files that stay in memory with a trajectory", "landscapex/trajectories/principal.py",
        "                self._flat[t] = None\n",
        "                pass\n",
        TRAJECTORY_CHECKPOINTS + "test_checkpoints_that_are_files_are_not_kept_in_memory",
    ),
    Planted(
        "fault 7", "a file that has changed is taken for the checkpoint", "landscapex/trajectories/principal.py",
        'if self._digests[t] not in (b"", digest):', "if False:",
        TRAJECTORY_CHECKPOINTS + "test_a_file_that_has_changed_is_not_taken_for_the_checkpoint",
    ),
    Planted(
        "trap 22", "points whose tied weight has its other name", "landscapex/trajectories/trajectory.py",
        "names = {name: tied.get(name, [name]) for name, _ in layout}",
        "names = {name: [name] for name, _ in layout}",
        TRAJECTORIES + "test_trap_22_points_are_projected_under_the_names_that_checkpoints_may_have",
    ),
    Planted(
        "trap 16", "all checkpoints with the statistics of the live model", "landscapex/trajectories/plane.py",
        "found[t] = objective.evaluate(state)",
        "found[t] = objective.evaluate(flat)",
        TRAJECTORY_CHECKPOINTS + "test_trap_16_every_checkpoint_is_evaluated_with_its_own_running_statistics",
    ),
    Planted(
        "trap 22", "a tied weight stored twice", "landscapex/storage/checkpoints.py",
        "if first.setdefault(place if t.numel() else name, name) != name:",
        "if first.setdefault(name, name) != name:",
        RECORDER + "test_trap_22_a_tied_weight_is_stored_once_and_read_under_both_names",
    ),
    Planted(
        "trap 41", "checkpoints that run code", "landscapex/storage/checkpoints.py",
        "weights_only=True, mmap",
        "weights_only=False, mmap",
        RUNS + "test_trap_41_fault_08_a_malicious_checkpoint_is_refused_and_not_run",
    ),
    Planted(
        "fault 7", "a damaged checkpoint is read", "landscapex/trajectories/runs.py",
        "if digest != self.sha256:", "if False:",
        RECORDER_RESUME + "test_no_flipped_bit_of_a_checkpoint_goes_unnoticed",
    ),
    Planted(
        "fault 7", "a damaged trajectory is read", "landscapex/storage/tensor_file.py",
        'or _digest(tensors, texts) != header.get("sha256"):', "or False:",
        TRAJECTORY_RESULTS + "test_no_flipped_bit_of_a_trajectory_goes_unnoticed",
    ),
    Planted(
        "late", "a step recorded with the weights of the next", "landscapex/trajectories/recorder.py",
        "and all(_same_bits(a, b.cpu()) for a, b in zip(samples, before, strict=True))",
        "and True",
        RECORDER + "test_a_model_written_to_past_its_version_counters_has_moved_on",
    ),
    Planted(
        "fault 5", "two trainings in one run", "landscapex/trajectories/callbacks.py",
        "            self._last = -1\n            self.recorder._continue_own()\n",
        "            pass\n",
        RECORDER_CALLBACKS + "test_training_that_starts_again_is_never_mixed_with_the_first",
    ),
    Planted(
        "fault 6", "the lock of a training that failed", "landscapex/trajectories/callbacks.py",
        "            self.recorder.release()\n",
        "            pass\n",
        RECORDER_CALLBACKS + "test_transformers_callback_leaves_no_lock_when_training_fails",
    ),
    Planted(
        "fault 4", "a torn line of a run", "landscapex/trajectories/runs.py",
        'whole = data[: data.rfind(b"\\n") + 1]', "whole = data",
        RECORDER_RESUME + "test_fault_04_a_torn_line_is_cut_and_its_step_recorded_again",
    ),
    Planted(
        "trap 16", "variances extrapolated below zero", "landscapex/studies/segment.py",
        "            mixed = mixed.clamp(min=0.0)\n",
        "            pass\n",
        INTERPOLATION + "test_trap_16_variances_stop_at_zero_beyond_the_ends",
    ),
    Planted(
        "trap 16", "buffers stay those of the first model", "landscapex/studies/interpolation.py",
        "session.snapshot.accompany(self._companions.follow)",
        "pass",
        INTERPOLATION + "test_trap_16_buffers_follow_and_counters_are_those_of_the_nearer_end",
    ),
    Planted(
        "trap 16", "counters interpolated with the rest", "landscapex/studies/segment.py",
        "            return self.end if alpha > 0.5 else self.start\n",
        "            return (1 - alpha) * self.start + alpha * self.end\n",
        INTERPOLATION + "test_trap_16_buffers_follow_and_counters_are_those_of_the_nearer_end",
    ),
    Planted(
        "trap 17", "tensors that followed a line stay where it ended", "landscapex/studies/interpolation.py",
        "            session.snapshot.also(self._companions.targets)\n",
        "",
        INTERPOLATION + "test_trap_17_the_models_come_back_bit_for_bit",
    ),
    Planted(
        "trap 38", "statistics interpolated where they should be recomputed", "landscapex/studies/interpolation.py",
        "precision=precision, bn=bn, datasets=datasets,",
        'precision=precision, bn="eval", datasets=datasets,',
        INTERPOLATION + "test_trap_38_statistics_are_recomputed_at_every_point",
    ),
    Planted(
        "trap 22", "a tied weight that a file names once is missing", "landscapex/model/parameters.py",
        "return {n: i for i, e in enumerate(self.entries) for n in (e.name, *e.aliases)}",
        "return {e.name: i for i, e in enumerate(self.entries)}",
        INTERPOLATION + "test_trap_22_tied_weights_move_once",
    ),
    Planted(
        "trap 16", "a column of the strip with the buffers of another checkpoint", "landscapex/studies/coststrip.py",
        "with objective.session(state) as session:",
        'with objective.session(objective.space.vector(state, what="x")) as session:',
        PROJECTIONS + "test_the_run_lies_on_the_strip",
    ),
    Planted(
        "cancellation", "a residual from squared lengths", "landscapex/studies/residuals.py",
        "        away = float(torch.linalg.vector_norm(residual))\n",
        "        away = max(0.0, float(((vector - line.start) ** 2).sum()) - along**2) ** 0.5\n",
        PROJECTIONS + "test_a_small_residual_beside_a_long_way_keeps_its_digits",
    ),
    Planted(
        "trap 7", "a direction of NaN where there is one parameter", "landscapex/studies/residuals.py",
        "        if self.unit.numel() < 2:\n",
        "        if False:\n",
        PROJECTIONS + "test_one_parameter_leaves_no_room_for_a_residual",
    ),
    Planted(
        "growth", "a run that is opened twice", "landscapex/studies/coststrip.py",
        "    end, index = solution_of(solution, run)\n",
        "    end, index = solution_of(solution, points_of(checkpoints, objective))\n",
        PROJECTIONS + "test_a_strip_opens_its_run_once_and_reads_a_checkpoint_once_per_column",
    ),
    Planted(
        "trap 7", "a NaN that a barrier hides", "landscapex/grids/line_measures.py",
        "    if np.isnan(j).any():\n",
        "    a, j = a[~np.isnan(j)], j[~np.isnan(j)]\n    if not j.size:\n",
        LINE_MEASURES + "test_what_is_not_known_is_not_hidden",
    ),
    Planted(
        "exact ends", "the end reached by adding a rounded difference", "landscapex/studies/interpolation.py",
        "            return self.session.losses(self._frame, in_frame, stop)\n",
        "            d = (self._frame[1] - self._frame[0])[None]\n"
        "            return self.session.losses(d, points, stop)\n",
        INTERPOLATION + "test_the_end_is_exact_where_the_difference_is_rounded",
    ),
    Planted(
        "shared bins", "bins of the first model for all", "landscapex/studies/histograms.py",
        "    for vector in vectors():\n        weights = _weights(vector, layers)\n        weights = weights[torch",
        "    for vector in list(vectors())[:1]:\n        weights = _weights(vector, layers)\n        weights = weights[torch",
        HISTOGRAMS + "test_bins_are_those_of_all_checkpoints",
    ),
]  # fmt: skip
