from .frameworks import Framework as Framework
from .frameworks import choose_framework as choose_framework
from .frameworks import framework_of as framework_of
from .nonfinite import NonFiniteLoss as NonFiniteLoss
from .torch_step import Step as Step
from .torch_step import TorchStep as TorchStep
from .torch_step import on_device as on_device
from .torch_step import train_step as train_step
