"""The simulated engine: see lab/engine/README.md for what it stands in for and what it cannot show."""
