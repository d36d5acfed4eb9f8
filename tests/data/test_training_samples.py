"""Training samples are the same after a resume and with any number of workers."""

import pytest
import torch

from ccnet.data.sets.synthetic import Beacons
from ccnet.data.training_samples import Seeded, _mix, train_loader
from ccnet.data.transforms import train_transform


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_samples_continue_exactly_with_any_number_of_workers(forked_workers, num_workers):
    dataset = Beacons(split="train", length=5, size=40, transform=train_transform(crop_size=(32, 32), flip=0.5))
    options = {"batch_size": 2, "iterations": 6}
    dataset = Seeded(dataset, 3)
    whole = list(train_loader(dataset, num_workers=0, **options))
    rest = list(train_loader(dataset, num_workers=num_workers, start=3, **options))
    assert len(whole) == 6
    assert all(
        torch.equal(a, b) for one, two in zip(whole[3:], rest, strict=True) for a, b in zip(one, two, strict=True)
    )


def test_every_epoch_visits_every_image_once_in_a_new_order():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return index

    orders = []
    for seed in (0, 1):
        batches = list(train_loader(Seeded(Numbers(), seed), batch_size=1, iterations=14, num_workers=0))
        orders += [[int(batch) for batch in batches[start : start + 7]] for start in (0, 7)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({*map(tuple, orders)}) == 4


def test_random_transforms_depend_on_the_seed_and_the_number_of_the_sample_only():
    class Draws(torch.utils.data.Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return torch.rand(()).item()

    drawn = set()
    for seed in (0, 1):
        for number in (0, 1, 2):
            values = set()
            for state in (3, 4):
                torch.manual_seed(state)
                values.add(Seeded(Draws(), seed)[number, 0])
            assert len(values) == 1
            drawn |= values
    assert len(drawn) == 6


def test_the_seeds_of_the_samples_are_those_of_earlier_versions():
    """Otherwise a run resumed after an update would silently see other samples."""
    assert _mix(3, 5, stream=1) == 1992432540103189275


def test_loading_does_not_change_the_global_random_state():
    dataset = Beacons(split="train", length=5, size=40, transform=train_transform(crop_size=(32, 32)))
    before = torch.get_rng_state()
    next(iter(train_loader(Seeded(dataset, 0), batch_size=2, iterations=1, num_workers=0)))
    assert torch.equal(torch.get_rng_state(), before)
