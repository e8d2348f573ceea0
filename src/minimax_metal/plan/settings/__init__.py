"""What users write: every setting of the plan, the playbooks and the roles, declared once."""

from minimax_metal.plan.settings.host import DECLARED as DECLARED
from minimax_metal.plan.settings.host import SETTINGS as SETTINGS
from minimax_metal.plan.settings.host import ChosenRecipe as ChosenRecipe
from minimax_metal.plan.settings.host import Settings as Settings
from minimax_metal.plan.settings.playbook import PLAYBOOK_SETTINGS as PLAYBOOK_SETTINGS
from minimax_metal.plan.settings.reading import UnknownVariable as UnknownVariable
from minimax_metal.plan.settings.reading import find_unknown as find_unknown
from minimax_metal.plan.settings.reading import refuse_unknown as refuse_unknown
from minimax_metal.plan.settings.values import SettingsError as SettingsError
