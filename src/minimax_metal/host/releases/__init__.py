"""A host's releases: the record of each, and the progress of a rollout."""
