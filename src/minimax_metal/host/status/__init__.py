"""What this host serves and its health: for a controller, and for users logged in here."""
