"""The one exception that users see."""


class UserError(Exception):
    """Something the user must put right.

    ``str(error)`` is one line: what was found, what was expected, what to do. Commands and Ansible
    adapters print that line and never a traceback.
    """
