"""Points that are lost, falsified or mixed, planted."""

from __future__ import annotations

from .runner import Planted

AXES_GIVEN = "tests/test_axes_given.py::"
BATCHES = "tests/test_batches.py::"
BATCH_NORM = "tests/test_batch_norm_edges.py::"
CHECKPOINTS = "tests/test_checkpoints.py::"
CLOCKS = "tests/test_clocks.py::"
DEVICES = "tests/test_devices.py::"
EVALUATE = "tests/test_evaluate.py::"
EXPORT = "tests/test_export.py::"
FULL_DISK = "tests/test_full_disk.py::"
GRID = "tests/test_grid.py::"
GUARD_CHANGES = "tests/test_guard_changes.py::"
GUARD_EXCLUSIVE = "tests/test_guard_exclusive.py::"
INTERRUPTS = "tests/test_interrupts.py::"
JOURNAL = "tests/test_journal_damage.py::"
KILLS = "tests/test_kills.py::"
LOCK = "tests/test_lock.py::"
OBJECTIVE_REFUSED = "tests/test_objective_refused.py::"
PARAMETERS = "tests/test_parameters.py::"
PARAMETERS_UNUSUAL = "tests/test_parameters_unusual.py::"
RESUME = "tests/test_resume.py::"
SHARDS = "tests/test_shards.py::"
SHORT_MEMORY = "tests/test_short_memory.py::"
STORE = "tests/test_store.py::"
TIME_LIMIT = "tests/test_time_limit.py::"

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
        "fault 2", "points begin that there is no time for", "landscapex/grids/time_limit.py",
        "        return left / max(_SLOWER * seconds, 1e-9)\n",
        "        return math.inf\n",
        TIME_LIMIT + "test_no_point_begins_that_there_is_no_time_for",
    ),
    Planted(
        "fault 2", "a slow point outlasts the limit", "landscapex/grids/time_limit.py",
        "            raise Abandon\n",
        "            return\n",
        TIME_LIMIT + "test_a_point_that_outlasts_the_limit_is_given_up",
    ),
    Planted(
        "fault 3", "half a line stays on a full disk", "landscapex/storage/journal.py",
        "                os.ftruncate(self._descriptor, end)\n",
        "                pass\n",
        FULL_DISK + "test_fault_03_a_full_disk_ends_a_surface_which_goes_on_when_there_is_room",
    ),
    Planted(
        "fault 3", "points that were not written count as kept", "landscapex/storage/journal.py",
        "            self._write(chunk_line(start, array, self._seed), start)\n"
        "            self._values[start:stop] = array\n"
        "            self._done[start:stop] = True\n",
        "            self._values[start:stop] = array\n"
        "            self._done[start:stop] = True\n"
        "            self._write(chunk_line(start, array, self._seed), start)\n",
        JOURNAL + "test_fault_03_a_full_disk_stops_cleanly_and_the_journal_goes_on_later",
    ),
    Planted(
        "fault 3", "nobody asks for room", "landscapex/storage/files.py",
        "    if status.f_blocks and free < needed:",
        "    if False:",
        JOURNAL + "test_fault_03_room_is_checked_before_the_run",
    ),
    Planted(
        "fault 4", "a torn line stays", "landscapex/storage/journal.py",
        "            os.truncate(path, contents.end)\n",
        "",
        JOURNAL + "test_fault_04_a_torn_line_is_cut_at_every_length",
    ),
    Planted(
        "fault 5", "another run is mixed in", "landscapex/storage/header.py",
        "for n, (a, b) in pairs.items() if a != b}",
        "for n, (a, b) in pairs.items() if a is None}",
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
        "fault 5", "parts that began at once are not compared", "landscapex/grids/filling.py",
        "        return journal, _read_elsewhere(options, header)\n",
        "        return journal, None\n",
        SHARDS + "test_fault_05_models_that_differ_are_found_although_they_begin_at_once",
    ),
    Planted(
        "fault 6", "two splits of a run at the same time", "landscapex/storage/parts.py",
        "        if not _beside(shard_of(path), shard):\n",
        "        if False:\n",
        SHARDS + "test_fault_06_another_split_at_the_same_time_is_refused",
    ),
    Planted(
        "fault 6", "the lock of a living process is taken", "landscapex/storage/lock.py",
        "    return start is None or bool(start and holder[\"start\"] and start != holder[\"start\"])\n",
        "    return True\n",
        LOCK + "test_fault_06_a_second_writer_fails_at_once",
    ),
    Planted(
        "fault 6", "the lock of a dead process stays", "landscapex/storage/lock.py",
        "    return start is None or bool(start and",
        "    return bool(start and",
        LOCK + "test_fault_06_the_lock_of_a_dead_process_is_stale",
    ),
    Planted(
        "fault 6", "a process of another container counts as dead", "landscapex/storage/lock.py",
        "        return alone is True\n",
        "        return True\n",
        LOCK + "test_fault_06_without_advisory_locks_it_works_all_the_same",
    ),
    Planted(
        "fault 6", "a live process lets its lock go", "landscapex/storage/lock.py",
        "                self._descriptor = descriptor\n",
        "",
        LOCK + "test_fault_06_containers_with_one_name_see_each_others_locks",
    ),
    Planted(
        "fault 6", "a result is written while others join it", "landscapex/storage/opening.py",
        "    with _exclusive(store.check_path(path)):\n",
        "    with contextlib.nullcontext():\n",
        SHARDS + "test_nobody_else_joins_while_a_whole_run_is_put_away",
    ),
    Planted(
        "fault 7", "a damaged result is read", "landscapex/storage/store.py",
        "    if data[:USER_BLOCK] != _user_block(data[USER_BLOCK:]):\n",
        "    if False:\n",
        STORE + "test_fault_07_one_flipped_bit_is_found_before_hdf5_sees_a_byte",
    ),
    Planted(
        "fault 8", "pickles are run", "landscapex/storage/checkpoints.py",
        "weights_only=True",
        "weights_only=False",
        CHECKPOINTS + "test_fault_08_a_malicious_pickle_is_refused_and_not_run",
    ),
    Planted(
        "fault 9", "shapes do not count", "landscapex/storage/checkpoints.py",
        "    if model.shape != file.shape:\n",
        "    if False:\n",
        CHECKPOINTS + "test_fault_09_one_error_lists_every_kind_of_mismatch",
    ),
    Planted(
        "fault 9", "a thousand names are listed", "landscapex/storage/checkpoints.py",
        "        listed = problems[:_LISTED]\n",
        "        listed = problems\n",
        CHECKPOINTS + "test_fault_09_at_most_ten_names_are_listed",
    ),
    Planted(
        "fault 9", "the errors of the reader of safetensors", "landscapex/storage/checkpoints.py",
        "    except Exception as error:\n"
        '        raise CorruptFileError(f"{path} is not a readable safetensors file: {error}.") from error\n',
        "    except KeyError as error:\n"
        '        raise CorruptFileError(f"{path} is not a readable safetensors file: {error}.") from error\n',
        CHECKPOINTS + "test_fault_09_a_damaged_file_is_named",
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
        "fault 19", "directions stay where they are", "landscapex/grids/filling.py",
        "directions.vectors.to(session.space.device, session.space.dtype)",
        "directions.vectors",
        DEVICES + "test_fault_19_directions_of_another_device_and_dtype_are_brought_to_the_model",
    ),
    Planted(
        "fault 19", "checkpoints are read to the GPU that they came from",
        "landscapex/storage/checkpoints.py",
        'map_location="cpu", ',
        "",
        DEVICES + "test_fault_19_a_checkpoint_of_a_machine_with_a_gpu_is_read_without_one",
    ),
    Planted(
        "fault 19", "nobody is told that data move", "landscapex/batches.py",
        "if torch.device(place) != device)",
        "if torch.device(place) == device)",
        BATCHES + "test_fault_19_batches_are_moved_once_with_a_note",
    ),
    Planted(
        "fault 20", "short memory ends an evaluation", "landscapex/engine/eager.py",
        "        if not memory.is_short(error):\n",
        "        if memory.is_short(error):\n",
        SHORT_MEMORY + "test_fault_20_batches_are_halved_until_there_is_room",
    ),
    Planted(
        "fault 20", "short memory ends a gradient", "landscapex/engine/eager.py",
        "                most = self._fewer(error, self.data, most)\n",
        "                most = None\n",
        SHORT_MEMORY + "test_fault_20_gradients_are_summed_over_pieces_for_which_there_is_room",
    ),
    Planted(
        "fault 20", "kernels are asked of oneDNN again", "landscapex/engine/eager.py",
        "            self._reset_modes()\n            with self._onednn():\n",
        "            self._reset_modes()\n            with contextlib.nullcontext():\n",
        SHORT_MEMORY
        + "test_fault_20_without_room_for_kernels_of_oneDNN_those_of_torch_take_their_place",
    ),
    Planted(
        "fault 20", "totals lie between activations", "landscapex/losses/totals.py",
        "        self._weights.append(weight if self._replayed else _read(weight))\n",
        "        self._weights.append(weight)\n",
        "tests/test_totals.py::test_totals_hold_no_memory_between_batches",
    ),
    Planted(
        "fault 20", "the batches of batch norm are cut", "landscapex/engine/eager.py",
        '        if self.bn != "eval" and self._norms:\n',
        "        if False:\n",
        SHORT_MEMORY + "test_fault_20_batch_statistics_are_those_of_whole_batches",
    ),
    Planted(
        "fault 20", "the data to blame are not named", "landscapex/engine/eager.py",
        "        batches = data[self._at]\n",
        "        batches = next(iter(data.values()))\n",
        SHORT_MEMORY + "test_fault_20_of_several_data_the_ones_that_cannot_be_cut_are_named",
    ),
    Planted(
        "fault 20", "samples that meet are parted", "landscapex/engine/layout.py",
        "                _same_samples(expected, outputs(map_leaves(batch, itemgetter(s))), s)\n",
        "                True\n",
        SHORT_MEMORY + "test_fault_20_batches_that_cannot_be_cut_are_an_error_that_helps",
    ),
    Planted(
        "fault 20", "the same batch is tried in vain again", "landscapex/objective.py",
        "                self._layouts[engine.space] = engine.layout\n",
        "",
        SHORT_MEMORY + "test_fault_20_an_objective_remembers_and_a_journal_too",
    ),
    Planted(
        "fault 20", "graphs of whole batches where memory is short", "landscapex/engine/graphs.py",
        "    if eager.layout.most is not None:\n",
        "    if False:\n",
        SHORT_MEMORY + "test_fault_20_a_device_without_room_gets_no_graphs",
    ),
    Planted(
        "fault 20", "a failed evaluation keeps its memory", "landscapex/engine/memory.py",
        "    traceback.clear_frames(error.__traceback__)\n",
        "    traceback.format_exception(error)\n",
        SHORT_MEMORY + "test_fault_20_a_failed_evaluation_holds_nothing_while_the_next_one_runs",
    ),
    Planted(
        "fault 20", "a device without room for the data", "landscapex/batches.py",
        "        except torch.OutOfMemoryError:\n",
        "        except MemoryError:\n",
        BATCHES + "test_fault_20_batches_for_which_a_device_has_no_room_stay_in_main_memory",
    ),
    Planted(
        "fault 21", "points are kept before the device has answered", "landscapex/grids/filling.py",
        "        self.session.snapshot.check_unchanged(contents=True)  # before they are kept\n",
        "",
        DEVICES + "test_fault_21_no_point_of_a_lost_device_is_journalled",
    ),
    Planted(
        "fault 21", "sums are read before they are there", "landscapex/engine/device.py",
        "space.totals.cpu().numpy()",
        "space.totals.numpy()",
        DEVICES + "test_fault_21_sums_of_the_compiled_engine_are_waited_for",
    ),
    Planted(
        "fault 22", "points that a dead part left are computed again", "landscapex/grids/filling.py",
        "            there = self.elsewhere.done & ~self._done\n",
        "            there = np.zeros_like(self._done)\n",
        SHARDS + "test_any_split_takes_up_what_another_left",
    ),
    Planted(
        "fault 22", "a part is taken for the whole", "landscapex/storage/opening.py",
        "    return surface.complete or _is_finished(result, header)\n",
        "    return True\n",
        SHARDS + "test_fault_22_merge_says_whose_points_are_missing",
    ),
    Planted(
        "fault 22", "points of another grid count as merged", "landscapex/storage/opening.py",
        "    return there.complete and not differences(header_of(there), header)\n",
        '    return there.complete and there.provenance["fingerprint"] == header.fingerprint\n',
        SHARDS + "test_fault_22_points_of_another_grid_are_not_taken_for_done",
    ),
    Planted(
        "fault 23", "torch's words for a batch of one sample", "landscapex/engine/batch_norm.py",
        'if bn == "eval" or not str(error).startswith(_ONE_VALUE):',
        "if True:",
        BATCH_NORM + "test_fault_23_a_batch_of_one_sample_has_no_variance",
    ),
    Planted(
        "fault 23", "words of the user are explained away", "landscapex/engine/batch_norm.py",
        "    if not any(id(norm) in passed for norm in norms):",
        "    if False:",
        BATCH_NORM + "test_fault_23_an_error_outside_of_batch_norm_keeps_its_words",
    ),
    Planted(
        "fault 23", "the statistics of one sample", "landscapex/engine/eager.py",
        "        if batches.num_samples < 2:\n",
        "        if batches.num_samples < 1:\n",
        BATCH_NORM + "test_fault_23_statistics_are_not_recomputed_from_one_sample",
    ),
    Planted(
        "fault 23", "statistics that are no numbers", "landscapex/session.py",
        "            if n := int(torch.isnan(t).sum()):\n",
        "            if n := int(torch.isnan(t).all()):\n",
        BATCH_NORM + "test_fault_23_a_running_variance_that_is_no_number_is_named",
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
        "fault 28", "a folder that nobody may write to", "landscapex/storage/files.py",
        "    if not os.access(path.parent, os.W_OK | os.X_OK, effective_ids=effective):\n",
        "    if False:\n",
        STORE + "test_fault_28_a_folder_without_permission_is_refused_at_the_start",
    ),
    Planted(
        "fault 28", "a folder as a result", "landscapex/storage/files.py",
        "    if stat.S_ISDIR(mode):\n",
        "    if False:\n",
        STORE + "test_fault_28_a_place_that_cannot_be_written_is_refused_at_the_start",
    ),
    Planted(
        "fault 28", "a link is replaced", "landscapex/storage/files.py",
        "Path(os.path.realpath(text))",
        "Path(os.path.abspath(text))",
        STORE + "test_fault_28_a_link_is_written_through_and_shares_the_lock",
    ),
    Planted(
        "fault 29", "a missing package is any ImportError", "landscapex/_extras.py",
        "    except ImportError as error:\n",
        "    except MissingExtraError as error:\n",
        EXPORT + "test_fault_29_a_missing_extra_is_named_with_the_command_that_installs_it",
    ),
    Planted(
        "fault 30", "the seconds of a clock that is set", "landscapex/grids/filling.py",
        "                        seconds = time.monotonic() - began\n",
        "                        seconds = time.time() - began\n",
        CLOCKS + "test_fault_30_a_clock_that_jumps_changes_neither_results_nor_times",
    ),
    Planted(
        "fault 30", "the grace of a clock that is set", "landscapex/interrupts.py",
        "time.monotonic() - self._since > GRACE",
        "time.time() - self._since > GRACE",
        CLOCKS + "test_fault_30_a_stopped_run_has_its_seconds_of_grace",
    ),
    Planted(
        "fault 30", "a run that was stopped gives its time away", "landscapex/grids/filling.py",
        "min(seconds, self._latest), seconds",
        "seconds, seconds",
        TIME_LIMIT + "test_fault_30_a_run_that_was_stopped_for_a_while_uses_the_time_that_is_left",
    ),
    Planted(
        "fault 30", "the time left of a clock that is set", "landscapex/_progress_bar.py",
        "    bar._time = time.monotonic  #",
        "    bar._time = bar._time  #",
        CLOCKS + "test_fault_30_the_time_left_is_that_of_a_clock_that_nobody_sets",
    ),
]  # fmt: skip
