"""A bundle: a directory that holds all a fleet fetches, with a manifest, for where no uplink is."""
