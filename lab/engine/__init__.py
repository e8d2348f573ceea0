"""The engine without a GPU: the plug-in's wheel, and an engine environment for the machine that runs the lab.

``plugin/`` is a package of its own, installed into engine environments and nowhere else; see README.md there
for what it stands for and what it cannot show.
"""

from lab.engine.environment import EnvironmentBuildError, environment
from lab.engine.wheel import build_wheel

__all__ = ["EnvironmentBuildError", "build_wheel", "environment"]
