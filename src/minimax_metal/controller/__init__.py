"""Code that runs on the controller: runs and their reports, inventory, keys, bundles, the hosts' status."""
