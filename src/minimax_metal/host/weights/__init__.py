"""Large files on a host: downloaded by the hubs' protocols, always verified, visible only when complete."""
