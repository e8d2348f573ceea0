"""Virtual hosts: roots, overlays, systemd-nspawn, networks, ssh, and the services beside them."""
