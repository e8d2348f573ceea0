"""Code that runs beside the engine on a host: its supervisor, diagnosis and helpers."""
