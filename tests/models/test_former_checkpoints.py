"""Older checkpoints stay loadable: networks keep the names, shapes and order of their tensors."""

import hashlib

import pytest
import torch

from ccnet.models import create_model

# Network -> number of tensors, and a prefix of the SHA-256 of their names and shapes followed by the parameter names in
# order, because optimiser states are stored in that order.
TENSORS = {
    "ccnet": (123, "ad58258a39ee8412"),
    "ccnet3d": (123, "ad58258a39ee8412"),
    "ce2p": (174, "474251220a267100"),
    "ce2p_rcca": (169, "98f409050a66d327"),
    "deeplabv3": (152, "b88c63f071dc3bc8"),
    "fcn": (116, "ee07610fc3a7cd5e"),
    "gcn": (124, "4e5a3b932071683c"),
    "hv": (130, "99ff3270120a26a2"),
    "hv_vh": (144, "85d4342ddce64f45"),
    "mask_rcnn": (133, "dc54417164dec229"),
    "nonlocal": (123, "ad58258a39ee8412"),
    "pspnet": (146, "d1a909b219eabc65"),
}


def build(name):
    if name == "mask_rcnn":
        return create_model(name, num_classes=5, backbone="resnet10t", channels=16, frozen=False)
    return create_model(name, num_classes=5, backbone="resnet10t", head__channels=16, embedding_channels=4)


@pytest.mark.parametrize("name", TENSORS)
def test_names_shapes_and_order_of_the_tensors_are_unchanged(name):
    with torch.device("meta"):
        network = build(name)
    lines = [f"{key} {list(tensor.shape)}" for key, tensor in network.state_dict().items()]
    lines += [key for key, _ in network.named_parameters()]
    found = len(network.state_dict()), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
    assert found == TENSORS[name], f"former checkpoints of {name} no longer load or resume:\n" + "\n".join(lines)
