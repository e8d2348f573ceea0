"""Is this directory a complete model? Decided from the files alone: no manifest, no hub, no network."""

from minimax_metal.host.weights.examine.directory import Examination, Expected, Problem, examine

__all__ = ["Examination", "Expected", "Problem", "examine"]
