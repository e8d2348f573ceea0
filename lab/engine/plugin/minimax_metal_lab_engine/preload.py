"""Imported by Python's fork server as it starts; see ``ranks.py``."""

from minimax_metal_lab_engine.ranks import preload

preload()
