"""Losses and metrics as means with weights, which add up over batches of any size."""
