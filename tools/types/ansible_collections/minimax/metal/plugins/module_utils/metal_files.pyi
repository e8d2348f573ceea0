"""The package's own file, which ``plugins/module_utils`` links to."""

from minimax_metal.common.files import directory_by_name as directory_by_name
from minimax_metal.common.files import sync_directory as sync_directory
