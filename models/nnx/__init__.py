"""The networks in Flax NNX, channels-last: twins of the torch networks, weight for weight.

A twin is made from a torch module and takes its settings and its weights: so the YAML files, timm's pretrained
weights and this project's checkpoints serve both frameworks, and :func:`state_dict` gives the weights back.
"""

from .twins import state_dict, twin

__all__ = ["state_dict", "twin"]
