"""Files: results, journals, checkpoints and tensors, whole or refused."""
