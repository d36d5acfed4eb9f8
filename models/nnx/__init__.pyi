from .twins import backbone_difference as backbone_difference
from .twins import state_dict as state_dict
from .twins import twin as twin
