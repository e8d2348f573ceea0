"""The fleet's keys and certificates on the controller: created, stored, rotated while the fleet serves."""
