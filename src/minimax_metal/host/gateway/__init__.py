"""A gateway host's own work: the gateway's launch, and its workers that come and go."""
