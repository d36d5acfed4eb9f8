"""Networks by name: errors for unknown names, several threads at once, and programs launched by Hydra."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.singleton import Singleton
from torch import nn

from ccnet.models import create_model
from ccnet.models.factory import _at_most, compose_conf
from ccnet.models.layers import Uninitialised

OPTIONS = dict(backbone="resnet10t", head__channels=16, aux_head__channels=16)


def test_threads_build_networks_at_once_even_in_a_program_launched_by_hydra():
    started = threading.Barrier(4)

    def built(number):
        started.wait()
        return create_model("ccnet", num_classes=number, head__recurrence=number, **OPTIONS).head

    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"), ThreadPoolExecutor(4) as pool:
        outer, before = GlobalHydra.instance(), dict(Singleton._instances)
        heads = pool.map(built, range(1, 5))
        for _ in range(3):  # meanwhile, the program composes its own
            assert compose("config", overrides=["seed=7"]).seed == 7
        assert [(head.classify.out_channels, head.recurrence) for head in heads] == [(n, n) for n in range(1, 5)]
        assert GlobalHydra.instance() is outer
        assert Singleton._instances.items() >= before.items()


def test_a_composed_configuration_is_that_of_hydra():
    options = ["model=ccnet", "dataset=camvid", "+sweep=recurrence", "num_classes=4"]
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        assert compose("config", overrides=options) == compose_conf(options, "config")


def test_the_limit_on_a_networks_size_leaves_other_threads_alone():
    with _at_most(10), ThreadPoolExecutor(1) as pool:
        assert pool.submit(nn.Linear, 4, 4).result().out_features == 4
        with pytest.raises(ValueError, match="far larger than its weights: at least 16 values"):
            nn.Linear(4, 4)


@pytest.mark.parametrize(("name", "backbone"), [("ccnet", "convnext_atto"), ("mask_rcnn", "resnet18")])
def test_a_network_without_initial_weights_draws_no_random_numbers(name, backbone):
    before = torch.get_rng_state()
    with Uninitialised():
        network = create_model(name, num_classes=2, backbone=backbone)
    assert torch.equal(torch.get_rng_state(), before)
    network.load_state_dict(create_model(name, num_classes=2, backbone=backbone).state_dict())
    assert not torch.equal(torch.get_rng_state(), before)


def test_errors_about_the_backbone_are_those_of_the_backbone():
    with pytest.raises(ValueError, match=r"^timm has no backbone 'resnet101x': did you mean resnet101, "):
        create_model("ccnet", num_classes=5, backbone="resnet101x")


@pytest.mark.parametrize("number", [0, -1, 2.0, True, None])
def test_a_network_has_at_least_one_class(number):
    with pytest.raises(ValueError, match=f"^num_classes is {number}: set it to an integer of at least 1$"):
        create_model("ccnet", num_classes=number, backbone="resnet10t")


def test_errors_for_unknown_models_and_settings_suggest_the_nearest():
    with pytest.raises(ValueError, match="no model 'ccnett': did you mean ccnet"):
        create_model("ccnett", num_classes=2)
    for given, meant in {
        "head__recurence": r"head__recurrence\? ",
        "in_chans": r"backbone__in_channels\? ",
        "channels": r"head__channels or aux_head__channels\? ",
    }.items():
        with pytest.raises(ValueError, match=f"^model 'ccnet' has no setting '{given}': did you mean {meant}"):
            create_model("ccnet", num_classes=2, backbone="resnet10t", **{given: 3})
    with pytest.raises(ValueError, match=r"has no setting 'encoder': conf/model/ccnet\.yaml lists"):
        create_model("ccnet", num_classes=2, backbone="resnet10t", encoder="resnet18")
    with pytest.raises(ValueError, match="model 'ccnet' has no setting 'context'"):
        create_model("ccnet", num_classes=2, backbone="resnet10t", context="nonlocal")  # as for mask_rcnn
