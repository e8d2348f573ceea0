"""What runs on a host beside the engine: its supervisor, and the records of what was released."""
