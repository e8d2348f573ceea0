"""What runs on GPU, gateway and cache hosts; the hosts' wheel holds it, and nothing of the controller."""
