from .twins import state_dict as state_dict
from .twins import twin as twin
