"""The command line that Ansible runs with."""

from typing import Any

CLIARGS: Any
