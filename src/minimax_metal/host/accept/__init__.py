"""Acceptance of the first host of a kind: what only its GPUs can show, in a report and a bundle."""
