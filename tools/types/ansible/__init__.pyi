"""What this project uses of Ansible, which has no types; a module that is not here is Any."""

from ansible import context as context
