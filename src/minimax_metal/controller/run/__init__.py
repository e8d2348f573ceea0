"""A run of a playbook: started, shown live, stored."""
