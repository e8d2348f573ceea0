"""The one exception that users see."""


class UserError(Exception):
    """An error that the user must fix.

    ``str(error)`` is one line: what was found, what was expected, what to do. Commands and Ansible adapters
    print that line and never a traceback.
    """
