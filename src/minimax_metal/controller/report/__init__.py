"""The report of a run, made from what was kept of it."""
