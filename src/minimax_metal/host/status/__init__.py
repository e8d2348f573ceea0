"""What this host serves and how it is: for a controller that asks, and for who is logged in here."""
