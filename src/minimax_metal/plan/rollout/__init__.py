"""A change of the fleet host by host: which go together, and whether it may go on."""
