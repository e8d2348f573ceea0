"""The simulated engine under the real one's name: ``python -m sglang.launch_server`` is a guide's own command."""

__version__ = "0.5.23"
