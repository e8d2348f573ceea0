"""The fleet's keys and certificates on the controller: made, kept, changed while the fleet serves."""
