"""Images whose pixels encode their position."""

import torch
from torchvision import tv_tensors


def coded(height, width):
    """Return an image whose red and green channels hold row and column, and labels that encode both."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y, x, torch.zeros_like(x)]).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask((y * width + x) % 200)


def ramp(height, width):
    """Return an image whose red and green rise along y and x, and labels that rise in ten steps along each."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack([y * 250 // height, x * 250 // width, torch.zeros_like(x)]).to(torch.uint8)
    labels = (y * 10 // height * 10 + x * 10 // width).to(torch.uint8)
    return tv_tensors.Image(image), tv_tensors.Mask(labels)
