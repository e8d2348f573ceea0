"""What weights must be, proved once here: by the hub, by a bundle's signature, by the user."""
