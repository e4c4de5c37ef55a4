"""Grids of points, how they are filled, and the results."""
