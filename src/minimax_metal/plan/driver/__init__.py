"""What has to be done to a host's driver, and why an installation failed."""
