"""A bundle: a directory with all that a fleet downloads, and a manifest, for sites without an uplink."""
