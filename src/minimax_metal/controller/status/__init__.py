"""What every host serves, read from the controller, and its drift from the inventory."""
