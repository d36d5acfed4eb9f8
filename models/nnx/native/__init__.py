"""Networks built from a configuration and a weight file without importing torch, torchvision or timm."""
