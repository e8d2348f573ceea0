"""The report of a run, made from its stored events."""
