"""A run of a playbook: started, shown as it goes, kept."""
