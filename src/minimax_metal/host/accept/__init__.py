"""The acceptance test for the first host of a kind: checks that need real GPUs, a report and a bundle."""
