from .conversion.twins import backbone_difference as backbone_difference
from .conversion.twins import state_dict as state_dict
from .conversion.twins import twin as twin
from .native.loading import load_network as load_network
