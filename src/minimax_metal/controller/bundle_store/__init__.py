"""A bundle as it lies in its directory: what it names, its signature, its files."""
