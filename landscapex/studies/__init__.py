"""Studies in one dimension and a bit: interpolation, residuals, cost strips, weights."""
