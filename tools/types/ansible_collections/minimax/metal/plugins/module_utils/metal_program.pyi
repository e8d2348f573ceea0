"""The package's own file, which ``plugins/module_utils`` links to."""

from minimax_metal.common.program import Answer as Answer
from minimax_metal.common.program import run as run
