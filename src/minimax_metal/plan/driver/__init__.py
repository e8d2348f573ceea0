"""Decisions about a host's driver, and why an installation failed."""
