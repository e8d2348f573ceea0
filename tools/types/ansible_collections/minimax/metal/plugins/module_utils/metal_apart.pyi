"""The package's own file, which ``plugins/module_utils`` links to."""

from minimax_metal.common.apart import within as within
