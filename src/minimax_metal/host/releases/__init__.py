"""What a host was given: the record of each release, and how far a rollout is with it."""
