"""From a captured model to a grid program: see `lower.lower`."""
