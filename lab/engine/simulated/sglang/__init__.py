"""The simulated engine under the real one's name; the guides call ``python -m sglang.launch_server``."""

__version__ = "0.5.23"
