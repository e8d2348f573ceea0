"""What hosts fetch besides weights: the fleet's cache, the archives behind it, bundles where no uplink is."""
