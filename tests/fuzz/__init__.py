"""Hostile input for every reader of foreign text; ``python -m tests.fuzz`` runs it."""
