"""Tiny MiniMax models for the lab: trained in seconds, published on the lab's hub, told to the plan.

README.md says what they stand for and what they cannot show.
"""

from lab.models.publication import publish
from lab.models.training_run import TrainingError

__all__ = ["TrainingError", "publish"]
