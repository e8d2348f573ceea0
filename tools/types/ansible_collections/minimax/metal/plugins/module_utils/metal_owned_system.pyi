"""The file of that name in ``plugins/module_utils``."""

from plugins.module_utils.metal_owned_system import HangError as HangError
from plugins.module_utils.metal_owned_system import known_packages as known_packages
from plugins.module_utils.metal_owned_system import missing_packages as missing_packages
from plugins.module_utils.metal_owned_system import projects_to_install as projects_to_install
from plugins.module_utils.metal_owned_system import units_work as units_work
from plugins.module_utils.metal_owned_system import users_to_make as users_to_make
