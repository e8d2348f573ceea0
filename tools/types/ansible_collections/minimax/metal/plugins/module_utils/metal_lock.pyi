"""The package's own file, which ``plugins/module_utils`` links to."""

from minimax_metal.host.lock import break_lock as break_lock
from minimax_metal.host.lock import described as described
from minimax_metal.host.lock import read as read
from minimax_metal.host.lock import release as release
from minimax_metal.host.lock import take as take
