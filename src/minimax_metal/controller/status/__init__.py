"""What every host serves, asked from here, and where it drifted from the inventory."""
