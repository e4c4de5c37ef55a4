"""Training runs: recorded, read, and seen in the plane of their principal components."""
