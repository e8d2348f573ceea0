"""The verbs of `metal` that run where Ansible runs: arguments in, exit status out."""
