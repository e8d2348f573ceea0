"""The lab's exception."""

from minimax_metal.common.errors import UserError


class LabError(UserError):
    """The lab can't do what was requested; ``str(error)`` is one line: found, expected, what to do."""
