"""The expected files of weights, established once here: from the hub, a bundle's signature, or the user."""
