"""A user's model: its parameters as a flat vector, and how it comes back as it was."""
