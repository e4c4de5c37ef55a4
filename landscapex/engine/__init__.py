"""Engines: what turns grid points ``[G, K]`` into losses ``[G, M]``."""
