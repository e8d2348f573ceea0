"""Hostile input for every reader of external text; ``python -m tests.fuzz`` runs it."""
