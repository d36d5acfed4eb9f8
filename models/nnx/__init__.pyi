from .native.loading import load_network as load_network
from .twins import backbone_difference as backbone_difference
from .twins import state_dict as state_dict
from .twins import twin as twin
