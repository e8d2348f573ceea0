"""The file of that name in ``plugins/module_utils``."""

from plugins.module_utils.metal_owned_files import Change as Change
from plugins.module_utils.metal_owned_files import apply as apply
