"""Defects in curvature: operators, eigenvalues, densities, traces, maps, sharpness."""

from __future__ import annotations

from .runner import Planted

DENSITY = "tests/test_density.py::"
TRACE = "tests/test_trace.py::"
DIAGONAL = "tests/test_diagonal.py::"
PRODUCTS = "tests/test_curvature_operators.py::"
DERIVATIVES = "tests/test_curvature_derivatives.py::"
UNTOUCHED = "tests/test_curvature_untouched.py::"
WORDS = "tests/test_curvature_words.py::"
MODELS = "tests/test_curvature_models.py::"
CLASSES = "tests/test_curvature_classes.py::"
LANCZOS = "tests/test_lanczos.py::"
MAPS = "tests/test_curvature_map.py::"
MAPS_RESUME = "tests/test_curvature_map_resume.py::"
SHARP = "tests/test_sharpness.py::"
ASCENT = "tests/test_sharpness_ascent.py::"
NOISE = "tests/test_sharpness_noise.py::"
LAYERS = "tests/test_sharpness_layers.py::"
CRITICALITY = "tests/test_criticality.py::"
FLOW = "tests/test_gradient_flow.py::"

ESTIMATES = [
    Planted(
        "trap 32", "the last row of eigenvectors as weights", "landscapex/curvature/quadrature.py",
        "weights = vectors[0] ** 2",
        "weights = vectors[-1] ** 2",
        DENSITY + "test_trap_32_weights_are_the_first_row_squared",
    ),
    Planted(
        "trap 32", "first entries, not their squares", "landscapex/curvature/quadrature.py",
        "weights = vectors[0] ** 2",
        "weights = np.abs(vectors[0]) / np.abs(vectors[0]).sum()",
        DENSITY + "test_trap_32_a_quadrature_is_that_of_numpys_eigh",
    ),
    Planted(
        "trap 32", "a solver for any matrix", "landscapex/curvature/quadrature.py",
        'eigh_tridiagonal(np.array(alphas), np.array(betas), lapack_driver="stev")',
        "np.linalg.eig(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))",
        DENSITY + "test_trap_32_a_quadrature_is_that_of_numpys_eigh",
    ),
    Planted(
        "trap 35", "stop when two means agree", "landscapex/curvature/trace.py",
        "            found = _estimate(product, method, traces, squares, sampler.known, tol)\n            if found.converged:\n",
        "            last = found.value if count > _FIRST_LOOK else math.inf\n            found = _estimate(product, method, traces, squares, sampler.known, tol)\n            if tol and abs(found.value - last) < tol * abs(last):\n",
        TRACE + "test_trap_35_a_tolerance_is_one_of_the_standard_error[hutchinson]",
    ),
    Planted(
        "trap 35", "estimates of XTrace taken for independent", "landscapex/curvature/trace.py",
        "math.sqrt(max(common, 0.0))",
        "0.0 * common",
        TRACE + "test_trap_35_errors_have_the_coverage_they_promise[xtrace-harmonic]",
    ),
    Planted(
        "trap 35", "squares taken for symmetric", "landscapex/curvature/trace.py",
        "max(error.skewness, least)",
        "0.0 * least",
        TRACE + "test_trap_35_norm_and_rank_have_the_coverage_they_promise[hutch++-harmonic]",
    ),
    Planted(
        "trap 35", "an error that does not fall with the samples", "landscapex/curvature/diagonal.py",
        "scatter / (count * (count - 1))",
        "scatter / (count - 1)",
        DIAGONAL + "test_trap_35_the_error_of_each_entry_has_the_coverage_it_promises[hutchinson]",
    ),
    Planted(
        "trap 35", "the normal distribution for few samples", "landscapex/curvature/estimates.py",
        "ndtri(upper) if math.isinf(degrees) else stdtrit(degrees, upper)",
        "ndtri(upper)",
        TRACE + "test_few_samples_need_students_distribution",
    ),
    Planted(
        "trap 36", "differences of gradients for products", "landscapex/curvature/linearized.py",
        "        return Built(term, float(terms.loss.detach()), weight)\n\n\n@dataclass",
        "        own, gradients = list(model.parameters()), lambda: torch.autograd.grad(self.measure(model, batch).loss, own)\n"
        "        def differences(parts, chosen):\n"
        "            found = []\n"
        "            for step in (1e-4, -2e-4, 1e-4):\n"
        "                for o, p in zip(own, parts, strict=True):\n"
        "                    o.data.add_(p, alpha=step)\n"
        "                found.append(gradients())\n"
        "            return [(a - b) / 2e-4 for a, b in zip(found[0], found[1], strict=True)]\n"
        "        term.product = differences\n"
        "        return Built(term, float(terms.loss.detach()), weight)\n\n\n@dataclass",
        DERIVATIVES + "test_trap_36_products_are_exact_near_the_kinks_of_relu",
    ),
    Planted(
        "trap 37", "sigma used as a variance", "landscapex/curvature/density.py",
        "((places.reshape(-1, 1) - at) / sigma) ** 2",
        "(places.reshape(-1, 1) - at) ** 2 / sigma",
        DENSITY + "test_trap_37_sigma_is_a_standard_deviation",
    ),
    Planted(
        "trap 37", "a density that is renormalised at the end", "landscapex/curvature/density.py",
        "    return (total / scale).reshape(places.shape)",
        "    total = total / max(np.trapezoid(total, places.reshape(-1)), 1e-9)\n    return total.reshape(places.shape)",
        DENSITY + "test_trap_37_nothing_is_renormalised",
    ),
    Planted(
        "trap 37", "weights that are made to sum to 1", "landscapex/curvature/quadrature.py",
        "    weights = vectors[0] ** 2\n",
        "    weights = vectors[0] ** 2 / float((vectors[0] ** 2).sum())\n",
        DENSITY + "test_trap_37_weights_that_do_not_sum_to_one_are_an_error",
    ),
    Planted(
        "trap 31", "no breakdown test in the recurrence", "landscapex/curvature/quadrature.py",
        "complete = beta <= small * scale or",
        "complete = beta < 0 or",
        DENSITY + "test_few_distinct_eigenvalues_end_the_recurrence",
    ),
]  # fmt: skip

SHARPNESS = [
    Planted(
        "trap 18", "a plain mean of groups", "landscapex/sharpness/ascent.py",
        "mean = float(np.sum(weights * values) / np.sum(weights))",
        "mean = float(np.mean(values))",
        ASCENT + "test_m_sharpness_is_the_mean_of_the_groups_own_rises",
    ),
    Planted(
        "trap 20", "flatness of the first batch", "landscapex/sharpness/flatness.py",
        "for batch in next(iter(session.engine.data.values())):",
        "for batch in list(next(iter(session.engine.data.values())))[:1]:",
        SHARP + "test_trap_20_every_batch_counts",
    ),
    Planted(
        "trap 34", "one end of the spectrum decides", "landscapex/criticality/points.py",
        'whole or given.which in ("LA", "BE")',
        "True",
        CRITICALITY + "test_an_end_of_the_spectrum_that_is_not_known_decides_nothing",
    ),
    Planted(
        "trap 35", "the spread of the draws for the error of their mean",
        "landscapex/sharpness/noise.py",
        "standard_error=standard_error(rises),",
        "standard_error=float(np.std(rises)),",
        NOISE + "test_trap_35_coverage_of_the_error_of_the_average_case",
    ),
    Planted(
        "check F4", "ASAM on the gradient itself", "landscapex/sharpness/ascent.py",
        "slope = slope if scale is None else slope * scale",
        "slope = slope + 0.0",
        SHARP + "test_check_f4_unchanged_when_nodes_are_rescaled",
    ),
    Planted(
        "check F5", "one layer too many", "landscapex/sharpness/fisher.py",
        "(layers or 0) ** 2",
        "((layers or 0) + 1) ** 2",
        LAYERS + "test_check_f5_fisher_rao_equals_l_squared_times_the_output_products",
    ),
    Planted(
        "check A2", "a difference that cancels", "landscapex/criticality/flow.py",
        "closed = -np.expm1(-x) / values",
        "closed = (1 - np.exp(-x)) / values",
        FLOW + "test_the_series_meets_the_closed_form_where_it_takes_over",
    ),
    Planted(
        "Keskar", "a small gradient ends the climb", "landscapex/sharpness/box.py",
        "self._scale = _STEEP * float(np.abs(slope).max()) or 1.0",
        "self._scale = 1.0",
        ASCENT + "test_a_small_gradient_does_not_end_the_climb",
    ),
    Planted(
        "fault 16", "the sharpness of a random loss", "landscapex/sharpness/probe.py",
        "value = self.session.checked_center()[0]",
        "value = self.session.values()[0]",
        SHARP
        + "test_a_loss_that_differs_from_time_to_time_is_refused_or_gets_the_same_draws",
    ),
]  # fmt: skip

MAPPED = [
    Planted(
        "trap 1", "a point starts from what the last one found", "landscapex/curvature/maps.py",
        "                row, _ = self._ends(",
        "                row, (self._start, _) = self._ends(",
        MAPS_RESUME + "test_trap_01_a_point_does_not_depend_on_the_others",
    ),
    Planted(
        "trap 34", "both ends of largest magnitude", "landscapex/curvature/maps.py",
        'which="BE"',
        'which="LM"',
        MAPS + "test_trap_34_a_definite_hessian_has_two_ends_of_one_sign",
    ),
    Planted(
        "trap 1", "the first point of a process decides for the others",
        "landscapex/curvature/maps.py",
        "                row, _ = self._ends(float(losses[0, 0]), stop)\n",
        "                row, found = self._ends(float(losses[0, 0]), stop)\n                self._plan = self._plan or (found and found[1])\n",
        MAPS_RESUME + "test_a_centre_that_is_not_finite_decides_nothing_for_the_other_points",
    ),
    Planted(
        "trap 1", "derivatives that are not finite taken for those by copies",
        "landscapex/curvature/products.py",
        "            a is not None and b is not None and torch.equal(a.isfinite(), b.isfinite())\n",
        "            True\n",
        PRODUCTS + "test_derivatives_that_are_not_finite_by_a_parameter_that_is_held",
    ),
    Planted(
        "fault 2", "a point is never given up between products", "landscapex/curvature/maps.py",
        "            stop.poll()\n",
        "            pass\n",
        MAPS_RESUME + "test_fault_02_a_slow_point_is_given_up_and_computed_later",
    ),
    Planted(
        "fault 5", "the settings of a map do not count", "landscapex/curvature/maps.py",
        "repr((self._settings, names))",
        "repr(names)",
        MAPS_RESUME + "test_fault_05_another_run_is_never_mixed_in",
    ),
    Planted(
        "fault 5", "what is computed does not count", "landscapex/grids/provenance.py",
        "        **quantity.fingerprint,\n",
        "",
        MAPS_RESUME + "test_fault_05_another_run_is_never_mixed_in",
    ),
    Planted(
        "fault 11", "a Hessian with NaN ends the map", "landscapex/curvature/maps.py",
        "except NonFiniteProductError:",
        "except ZeroDivisionError:",
        MAPS + "test_a_hessian_that_is_not_finite_is_a_hole_too",
    ),
    Planted(
        "fault 11", "points that did not converge go unsaid", "landscapex/curvature/maps.py",
        'if doubtful := int((finite & (result["converged"] == 0)).sum()):',
        'if doubtful := 0:',
        MAPS + "test_points_that_did_not_converge_say_so",
    ),
    Planted(
        "fault 17", "an error in the curvature has no place", "landscapex/curvature/maps.py",
        '                error.add_note("landscapex: at " +',
        '                str("landscapex: at " +',
        MAPS + "test_fault_17_an_error_of_the_loss_says_where",
    ),
]  # fmt: skip

OPERATORS = [
    Planted(
        "trap 17", "products in training mode", "landscapex/curvature/operators.py",
        "    with engine.evaluating():\n",
        "    if True:\n",
        UNTOUCHED + "test_products_are_in_evaluation_mode_where_a_session_has_moved_the_model",
    ),
    Planted(
        "trap 18", "the plain mean of the products of batches",
        "landscapex/curvature/products.py",
        "[n / weight for n in weights]",
        "[1 / len(weights) for n in weights]",
        PRODUCTS + "test_trap_18_the_square_of_a_linear_model_on_8_and_2_samples",
    ),
    Planted(
        "trap 20", "the curvature of the first batch", "landscapex/curvature/products.py",
        "            for b, batch in enumerate(self._batches):\n                with self._entered()",
        "            for b, batch in enumerate([next(iter(self._batches))]):\n                with self._entered()",
        PRODUCTS + "test_trap_20_every_batch_counts",
    ),
    Planted(
        "trap 21", "the model keeps the copies", "landscapex/curvature/standing.py",
        "                tensors[name] = own\n",
        "                pass\n",
        UNTOUCHED + "test_trap_21_the_model_and_the_generators_stay_bit_for_bit",
    ),
    Planted(
        "trap 22", "a tied weight that is a constant under its second name",
        "landscapex/curvature/standing.py",
        "copy, leaf = copies[id(tensor)], id(tensor) in chosen",
        "copy, leaf = copies.pop(id(tensor)), id(tensor) in chosen",
        MODELS + "test_trap_22_tied_weights_count_once",
    ),
    Planted(
        "trap 23", "unused parameters end it", "landscapex/curvature/linearized.py",
        "torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)",
        "torch.autograd.grad(loss, leaves, create_graph=True)",
        MODELS + "test_trap_23_unused_parameters_are_zero_and_frozen_ones_left_out",
    ),
    Planted(
        "trap 24", "products without a lock", "landscapex/curvature/products.py",
        "with contextlib.nullcontext() if alive else exclusive(self.space):",
        "with contextlib.nullcontext():",
        UNTOUCHED + "test_trap_24_products_in_two_threads",
    ),
    Planted(
        "trap 26", "the conjugate of a complex product", "landscapex/curvature/products.py",
        "torch.view_as_real(part.resolve_conj())",
        "torch.view_as_real(part.conj().resolve_conj())",
        MODELS + "test_trap_26_complex_parameters_count_by_real_and_imaginary_parts",
    ),
    Planted(
        "trap 28", "the fast kernels of attention", "landscapex/curvature/standing.py",
        "stack.enter_context(sdpa_kernel(SDPBackend.MATH))",
        "stack.enter_context(contextlib.nullcontext())",
        MODELS + "test_trap_28_attention_has_second_derivatives",
    ),
    Planted(
        "trap 29", "graphs that stay until cycles are collected",
        "landscapex/curvature/operators.py",
        "product = partial(linearization.product, block, decay=decay)",
        "product = lambda v: self._linearization.product(block, v, decay=decay)",
        UNTOUCHED + "test_trap_29_the_graph_goes_with_the_operator",
    ),
    Planted(
        "curvature", "products in the arithmetic of the caller",
        "landscapex/curvature/products.py",
        "with own_arithmetic(self._precision, self.space.device):",
        "with contextlib.nullcontext():",
        MODELS + "test_autocast_is_off",
    ),
    Planted(
        "curvature", "averaged gradients in the dtype of the model",
        "landscapex/curvature/classes.py",
        "            self._block.add(self.means[c, other], pulled, share)\n",
        "            self._block.add(self.means[c, other], pulled, share)\n            self.means = self.means.float().double()\n",
        CLASSES + "test_gradients_in_float32_are_averaged_in_float64",
    ),
    Planted(
        "curvature", "a product in the arithmetic of the caller", "landscapex/curvature/classes.py",
        "return products[name](v.double()).to(v.dtype)",
        "return (torch.eye(len(v)) @ products[name](v.double()).to(v.dtype))",
        CLASSES + "test_the_callers_autocast_changes_no_bit",
    ),
    Planted(
        "curvature", "a matrix by the name of another", "landscapex/curvature/operators.py",
        '"the gradient" if kind == "hessian" else "the output and its Jacobian"',
        '"the gradient"',
        WORDS + "test_every_result_says_of_what_matrix_it_is",
    ),
    Planted(
        "curvature", "a warning at a line of ours", "landscapex/_warnings.py",
        "        frame, level = frame.f_back, level + 1\n",
        "        break\n",
        WORDS + "test_warnings_point_at_the_line_that_asked",
    ),
    Planted(
        "curvature", "weight norm by torch's own double backward",
        "landscapex/curvature/replacements.py",
        "if func is torch._weight_norm:",
        "if False:",
        MODELS + "test_weight_norm_is_differentiated_through_its_norm",
    ),
]  # fmt: skip

EIGENPAIRS = [
    Planted(
        "trap 30", "orthogonal to the last two rows only", "landscapex/curvature/basis.py",
        "return self._project(vector, self.rows)",
        "return self._project(vector, self.vectors[max(0, self.count - 2) : self.count])",
        LANCZOS + "test_trap_30_outliers_come_once_each_after_120_steps",
    ),
    Planted(
        "trap 30", "orthogonalised once", "landscapex/_fallback.py",
        "    for _ in range(2):\n        found = _float64(torch.zeros_like(total))\n",
        "    for _ in range(1):\n        found = _float64(torch.zeros_like(total))\n",
        "tests/test_orthogonalize.py::test_once_would_not_be_enough",
        native=False,
    ),
    Planted(
        "trap 31", "no breakdown test", "landscapex/curvature/krylov.py",
        "left > self.basis.rounding * self.longest:",
        "True:",
        LANCZOS + "test_trap_31_a_closed_space_is_left_by_a_random_vector",
    ),
    Planted(
        "trap 31", "an absolute breakdown test", "landscapex/curvature/krylov.py",
        "left > self.basis.rounding * self.longest:",
        "left > self.basis.rounding:",
        LANCZOS + "test_trap_31_a_closed_space_is_left_by_a_random_vector",
    ),
    Planted(
        "trap 31", "a block that is closed as soon as one product adds nothing",
        "landscapex/curvature/krylov.py",
        "if n > self.done:",
        "if self.basis.count > self.done + 1:",
        LANCZOS + "test_trap_31_a_block_whose_products_add_nothing",
    ),
    Planted(
        "trap 31", "a closed space taken for the whole", "landscapex/curvature/lanczos.py",
        "return before is not None and bool((np.abs(ranks - before) <= limit).all())",
        "return True",
        LANCZOS + "test_trap_31_a_closed_space_is_not_taken_for_the_whole",
    ),
    Planted(
        "trap 31", "a space that only rounding keeps open", "landscapex/curvature/lanczos.py",
        "nearly_closed = 0 < krylov.step() <= self.settings.tol",
        "nearly_closed = krylov.step() < 0",
        LANCZOS + "test_trap_31_nor_is_a_space_that_rounding_keeps_from_closing",
    ),
    Planted(
        "trap 33", "magnitudes ranked by value", "landscapex/curvature/lanczos.py",
        "        size = np.abs(values)\n",
        "        size = values\n",
        LANCZOS + "test_trap_33_a_value_and_its_negative_are_both_found",
    ),
    Planted(
        "trap 33", "the first to converge wins", "landscapex/curvature/lanczos.py",
        "ritz.residuals[following] > limit and reach > end.rank[last]",
        "ritz.residuals[following] > limit and reach < -math.inf",
        LANCZOS + "test_trap_33_a_converged_value_waits_for_what_may_still_outgrow_it",
    ),
    Planted(
        "trap 34", "both from the upper end", "landscapex/curvature/lanczos.py",
        '"BE": k // 2}[which]',
        '"BE": 0}[which]',
        LANCZOS + "test_trap_34_both_ends_come_from_one_run",
    ),
    Planted(
        "curvature", "residuals that were estimated, not measured", "landscapex/curvature/krylov.py",
        "        value, left = self.basis.rayleigh(i, self._product(i))\n",
        "        value, left = self.matrix[i, i], float(np.linalg.norm(self.matrix[self.done :, i]))\n",
        LANCZOS + "test_noise_in_products_is_reported_not_hidden",
    ),
]  # fmt: skip

CURVATURE = OPERATORS + EIGENPAIRS + ESTIMATES + SHARPNESS + MAPPED
