"""Decide once what a MiniMax host runs, apply it with Ansible, prove it."""

__version__ = "0.2.0"
