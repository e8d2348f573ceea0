"""What goes wrong in the lab."""

from minimax_metal.common.errors import UserError


class LabError(UserError):
    """The lab cannot do what was asked; ``str(error)`` is one line: found, expected, what to do."""
