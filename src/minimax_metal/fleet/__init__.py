"""The fleet, seen from the controller: runs of playbooks, what they show, what they leave behind."""
