"""Networks built from a configuration and a weight file, without torch, torchvision and timm."""
