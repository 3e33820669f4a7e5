"""Order, sharing among processes, normalization: what a batch holds is a function of (seed, epoch, step)."""

import pytest
import torch

from cnn_train.data.augment import Compose, Erase, MixUp, Shift, flip_crop
from cnn_train.data.data import Data, DataSet
from cnn_train.data.digits import digits
from cnn_train.data.random import generator, key, uniform
from cnn_train.data.source import InMemory
from cnn_train.errors import DataError

CPU = torch.device("cpu")
MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The output function of splitmix64 in unbounded integers."""
    z = state & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def make(n: int = 70, batch_size: int = 16, **options) -> Data:
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator(1))
    split = InMemory(images, torch.arange(n) % 5)
    names = [str(i) for i in range(5)]
    splits = {"train": split, "val": split, "test": split}
    return Data(
        DataSet("toy", "labels", splits, names, 3, (8, 8)), batch_size=batch_size, **{"eval_batch_size": 32, **options}
    )


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_uniform_is_splitmix64_of_the_counter():
    indices = torch.tensor([0, 1, 41, 2**40])
    got = uniform(3, 7, indices=indices, count=3)
    start = key(3, 7)
    for row, index in enumerate(indices.tolist()):
        for column in range(3):
            bits = splitmix64(start + (index * 1024 + column) * 0x9E3779B97F4A7C15)
            assert got[row, column].item() == (bits >> 40) / 2**24


def test_uniform_is_uniform_and_independent_of_its_neighbours():
    draws = uniform(0, 1, indices=torch.arange(20000), count=4).double()
    assert draws.min() >= 0 and draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 0.01
    assert (draws.var(0) - 1 / 12).abs().max() < 0.003
    other_seed = uniform(1, 1, indices=torch.arange(20000), count=4).double()
    together = torch.corrcoef(torch.cat([draws.T, other_seed.T, draws[1:].T[:1].repeat(1, 2)[:, :20000]]))
    assert (together - torch.eye(len(together))).abs().max() < 0.03


def test_keys_depend_on_the_order_and_the_sign():
    keys = {key(0), key(1), key(0, 0), key(0, 1), key(1, 0), key(-1), key(2**32 - 1)}
    assert len(keys) == 7
    assert all(-(2**63) <= value < 2**63 for value in keys)


def test_an_epoch_holds_every_sample_once_in_an_order_of_its_own():
    data = make()
    orders = [torch.cat([batch.indices for batch in data.train_batches(epoch, device=CPU)]) for epoch in (0, 1, 0)]
    assert sorted(orders[0].tolist()) == list(range(70))
    assert torch.equal(orders[0], orders[2]) and not torch.equal(orders[0], orders[1])
    other = torch.cat([batch.indices for batch in make(seed=1).train_batches(0, device=CPU)])
    assert not torch.equal(orders[0], other)


def test_batches_from_a_step_on_are_those_of_the_whole_epoch():
    data = make(augment=Compose([flip_crop(2), Shift(), MixUp()]))
    whole = list(data.train_batches(3, device=CPU))
    assert len(whole) == data.train_steps() == 5
    for start in range(6):
        rest = list(data.train_batches(3, device=CPU, start=start))
        assert len(rest) == 5 - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


@pytest.mark.parametrize("augment", [None, Compose([flip_crop(2), Shift(), Erase()])])
def test_batches_made_together_are_those_made_alone(augment, monkeypatch):
    data = make(augment=augment)
    together = list(data.train_batches(0, device=CPU))
    monkeypatch.setattr(Data, "_steps_together", lambda self: 1)
    assert all(same(a, b) for a, b in zip(together, data.train_batches(0, device=CPU), strict=True))
    assert make(augment=MixUp()).augment.mixes and (augment is None or not augment.mixes)


def test_the_global_generator_is_neither_used_nor_moved():
    data = make(augment=flip_crop(2))
    torch.manual_seed(0)
    first = list(data.train_batches(0, device=CPU))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert all(same(a, b) for a, b in zip(first, data.train_batches(0, device=CPU), strict=True))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_processes_share_each_global_batch(world_size, drop_last):
    data = make(n=67, drop_last=drop_last, augment=flip_crop(2))
    alone = list(data.train_batches(1, device=CPU))
    shared = [list(data.train_batches(1, device=CPU, rank=r, world_size=world_size)) for r in range(world_size)]
    steps = data.train_steps(world_size)
    assert all(len(part) == steps for part in shared)
    for step in range(steps):
        parts = [part[step] for part in shared]
        assert all(len(part.indices) for part in parts)
        together = torch.cat([part.indices for part in parts])
        assert sorted(together.tolist()) == sorted(alone[step].indices.tolist())
        place = {int(index): row for row, index in enumerate(alone[step].indices)}
        rows = [place[int(index)] for index in together]
        assert torch.equal(torch.cat([part.images for part in parts]), alone[step].images[rows])


def test_a_rest_smaller_than_the_processes_is_left_out_for_all():
    data = make(n=33, batch_size=16)
    assert data.train_steps(1) == 3 and data.train_steps(2) == 2
    assert len(list(data.train_batches(0, device=CPU, rank=1, world_size=2))) == 2


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_counts_every_sample_once(world_size):
    data = make(n=67, augment=flip_crop(2))
    seen, plain = [], data.splits["val"].images
    for rank in range(world_size):
        for batch in data.eval_batches("val", device=CPU, rank=rank, world_size=world_size):
            assert len(batch.indices) <= data.eval_batch_size
            assert torch.equal(batch.images, data.to_input(plain[batch.indices]))
            seen += batch.indices.tolist()
    assert sorted(seen) == list(range(67))


def test_standardize_gives_zero_mean_and_unit_deviation():
    data = make()
    images = torch.cat([batch.images for batch in data.eval_batches("train", device=CPU)]).double()
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-5
    raw = data.splits["train"].images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean, dtype=torch.float64), raw.mean((0, 2, 3)))
    torch.testing.assert_close(torch.tensor(data.std, dtype=torch.float64), raw.std((0, 2, 3), correction=0))


@pytest.mark.parametrize("normalize, low, high", [("minmax", 0, 1), ("none", 0, 255)])
def test_other_normalizations(normalize, low, high):
    data = make(normalize=normalize)
    images = torch.cat([batch.images for batch in data.eval_batches("train", device=CPU)])
    assert images.min() == low and abs(images.max().item() - high) < 1e-4


@pytest.mark.parametrize("normalize", ["standardize", "minmax", "none"])
def test_denormalize_undoes_it(normalize):
    data = make(normalize=normalize)
    batch = next(iter(data.eval_batches("val", device=CPU)))
    back = data.denormalize(batch.images)
    assert (back - data.splits["val"].images[:32] / 255).abs().max() < 1e-5


def test_preprocessing_is_plain_data():
    def plain(value) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return type(value) in (str, int, float, bool)

    assert plain(make().preprocessing())


def test_bad_settings_are_named():
    with pytest.raises(DataError, match="normalize"):
        make(normalize="zscore")
    with pytest.raises(DataError, match="train split is empty"):
        make(n=0)


def test_digits_are_split_by_class_whatever_the_seed():
    data = digits(seed=5)
    assert [data.size(split) for split in ("train", "val", "test")] == [1078, 359, 360]
    assert data.image_size == (32, 32) and data.in_channels == 1 and data.class_names == [str(i) for i in range(10)]
    shares = torch.stack([data.class_counts(split) / data.size(split) for split in ("train", "val", "test")])
    assert (shares - shares.mean(0)).abs().max() < 0.005
    assert torch.equal(data.splits["test"].images, digits(seed=6).splits["test"].images)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    native = digits(image_size=8)
    images = torch.cat([native.splits[split].images for split in ("train", "val", "test")]).squeeze(1)
    wanted = torch.from_numpy(load_digits().images / 16 * 255).round().to(torch.uint8)
    assert sorted(map(bytes, images.flatten(1).numpy())) == sorted(map(bytes, wanted.flatten(1).numpy()))
    assert digits(image_size=[12, 20]).image_size == (12, 20)


def test_a_few_batches_to_overfit_are_those_of_training_in_every_split():
    """The first two of epoch 0, normalized as before."""
    data = digits(batch_size=8, eval_batch_size=5)
    device = torch.device("cpu")
    first = [batch for batch, _ in zip(data.train_batches(0, device=device), range(2), strict=False)]
    images = torch.cat([batch.images for batch in first])
    labels = torch.cat([batch.targets for batch in first])
    order = torch.cat([batch.indices for batch in first]).argsort()
    data.keep_batches(2)
    assert data.train_steps() == 2 and data.size("val") == data.size("test") == 16
    for split in ("train", "val", "test"):
        kept = list(data.eval_batches(split, device=device))
        assert torch.equal(torch.cat([batch.images for batch in kept]), images[order])
        assert torch.equal(torch.cat([batch.targets for batch in kept]), labels[order])
    again = torch.cat([batch.targets for batch in data.train_batches(3, device=device)])
    assert torch.equal(again.sort().values, labels.sort().values)
    data.join()
    assert data.size("all") == 16
