"""What runs where Ansible runs: runs and their reports, the inventory, keys, bundles, the hosts' status."""
