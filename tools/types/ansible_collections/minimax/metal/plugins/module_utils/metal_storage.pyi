"""The file of that name in ``plugins/module_utils``."""

from plugins.module_utils.metal_storage import adoptable as adoptable
from plugins.module_utils.metal_storage import disks as disks
from plugins.module_utils.metal_storage import engine_environments as engine_environments
from plugins.module_utils.metal_storage import stored_weights as stored_weights
