"""Second derivatives: operators, eigenvalues, densities, traces."""
