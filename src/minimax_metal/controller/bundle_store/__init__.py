"""A bundle on disk: its manifest, its signature, its files."""
