"""Views of a dataset: image and label stay aligned, and every bit depends only on (seed, epoch, index)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from cawa_fast.recipes.datasets import Augmentation, EpochSampler, EvalView, TrainView
from tests.support.arrays import coded


@pytest.mark.parametrize("size", [(40, 60), (23, 31)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.4, 3.0)])
def test_image_and_label_stay_aligned(size, scale):
    data = coded(*size)
    augmentation = Augmentation(crop=(24, 48), scale=scale, jitter=0, nearest=True, fill=(255, 0, 0))
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(40):
        image, label = augmentation(*data.read(0), rng)
        assert image.shape == (24, 48, 3)
        assert label.shape == (24, 48)
        np.testing.assert_array_equal(image[..., 0], label)  # padding too: red 255, label 255
        inside = label != 255
        rows, columns = image[inside][:, 1], image[inside][:, 2]
        np.testing.assert_array_equal(data.pairs[0][1][rows, columns], label[inside])
        seen += inside.sum()
    assert seen > 0.3 * 40 * 24 * 48


def test_without_randomness_the_crop_is_the_image():
    data = coded(24, 48)
    image, label = data.read(0)
    plain = Augmentation(crop=(24, 48), scale=(1, 1), flip=0, jitter=0)
    for a, b in zip(plain(image, label, np.random.default_rng(0)), (image, label), strict=True):
        np.testing.assert_array_equal(a, b)


def test_flip_mirrors_image_and_label():
    data = coded(24, 48)
    image, label = data.read(0)
    flipped = Augmentation(crop=(24, 48), scale=(1, 1), flip=1, jitter=0)
    for a, b in zip(flipped(image, label, np.random.default_rng(0)), (image, label), strict=True):
        np.testing.assert_array_equal(a, b[:, ::-1])
    both = [Augmentation((24, 48), (1, 1), 0.5, 0)(image, label, np.random.default_rng(k))[1] for k in range(60)]
    mirrored = sum((view == label[:, ::-1]).all() for view in both)
    assert 15 < mirrored < 45


def test_padding_is_ignored_and_has_the_mean_colour():
    image = np.full((10, 10, 3), (10, 120, 230), np.uint8)
    label = np.full((10, 10), 3, np.uint8)
    for k in range(20):
        view, view_label = Augmentation((32, 32), (1, 1), jitter=0)(image, label, np.random.default_rng(k))
        assert (view_label == 3).sum() == pytest.approx(100, abs=19)  # the position is not a whole number of pixels
        assert set(np.unique(view_label)) == {3, 255}
        assert (view == (10, 120, 230)).all()


def test_window_of_the_source_gives_the_bits_of_the_whole():
    """Only the rectangle under the crop is resampled; it must include the filter's reach at the borders."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    label = np.zeros((90, 120), np.uint8)
    for scale in (0.35, 0.8, 1.0, 2.3):
        augmentation = Augmentation((30, 40), (scale, scale), flip=0, jitter=0)
        view, _ = augmentation(image, label, np.random.default_rng(5))
        draws = np.random.default_rng(5)
        draws.random()
        top, left = ((length * scale - crop) * draws.random() for length, crop in ((90, 30), (120, 40)))
        box = (left / scale, top / scale, (left + 40) / scale, (top + 30) / scale)
        whole = Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR, box=box)
        difference = np.abs(view.astype(int) - np.asarray(whole))
        assert difference.max() <= 1  # the box is the same up to float32 rounding of its offset
        assert (difference > 0).mean() < 0.01


def test_scale_is_the_size_of_things():
    """A disc of 400 pixels in the middle has 400 times the square of the scale in the view."""
    rows, columns = np.mgrid[:200, :200]
    label = (np.hypot(rows - 99.5, columns - 99.5) < 11.28).astype(np.uint8)
    image = np.zeros((200, 200, 3), np.uint8)
    for scale in (0.5, 1.0, 2.0):
        _, view = Augmentation((400, 400), (scale, scale), jitter=0)(image, label, np.random.default_rng(0))
        assert (view == 1).sum() == pytest.approx(400 * scale**2, rel=0.06)


def test_jitter_stays_in_its_range_and_keeps_grey_grey():
    image = np.full((16, 16, 3), 100, np.uint8)
    label = np.zeros((16, 16), np.uint8)
    values = []
    for k in range(100):
        view, _ = Augmentation((16, 16), (1, 1), jitter=0.25)(image, label, np.random.default_rng(k))
        assert (np.ptp(view, axis=2) <= 1).all()
        values.append(int(view[8, 8, 0]))
    assert 74 <= min(values) < 82
    assert 118 < max(values) <= 126


def test_contrast_and_saturation_change():
    rng = np.random.default_rng(0)
    image = rng.integers(80, 170, (16, 16, 3), dtype=np.uint8)
    label = np.zeros((16, 16), np.uint8)
    views = [
        Augmentation((16, 16), (1, 1), jitter=0.25)(image, label, np.random.default_rng(k))[0].astype(float)
        for k in range(40)
    ]
    chroma = [np.ptp(view, axis=2).mean() / view.mean() for view in views]
    spread = [view.mean(axis=2).std() / view.mean() for view in views]
    assert max(chroma) > 1.5 * min(chroma)
    assert max(spread) > 1.3 * min(spread)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"crop": (0, 4)}, r"crop=\(0, 4\)"),
        ({"scale": (2.0, 1.0)}, r"scale=\(2.0, 1.0\)"),
        ({"scale": (0.0, 1.0)}, r"scale=\(0.0, 1.0\)"),
        ({"flip": 1.5}, "flip=1.5"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"fill": (0, 0, 256)}, r"fill=\(0, 0, 256\)"),
    ],
)
def test_augmentation_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**{"crop": (4, 4), **arguments})


# -- views and order ------------------------------------------------------------------------------------------------


def epoch_bits(workers: int, epoch: int, *, seed: int = 0):
    """One epoch through a loader: which images in which order, and all bytes."""
    view = TrainView(coded(20, 30, length=6), Augmentation(crop=(16, 16)), seed=seed)
    sampler = EpochSampler(len(view), seed=seed)
    sampler.set_epoch(epoch)
    context = "fork" if workers else None  # fork is the fastest to start; the result does not depend on it
    loader = DataLoader(view, batch_size=2, sampler=sampler, num_workers=workers, multiprocessing_context=context)
    batches = list(loader)
    assert all(x.dtype == y.dtype == torch.uint8 and x.shape == (2, 3, 16, 16) for x, y in batches)
    return [(x.numpy().tobytes(), y.numpy().tobytes()) for x, y in batches]


def test_bits_do_not_depend_on_workers():
    assert epoch_bits(0, 3) == epoch_bits(2, 3)


def test_bits_depend_on_epoch_and_seed():
    first = epoch_bits(0, 0)
    assert first == epoch_bits(0, 0)
    assert first != epoch_bits(0, 1)
    assert first != epoch_bits(0, 0, seed=1)
    view = TrainView(coded(20, 30), Augmentation(crop=(16, 16)))
    assert not torch.equal(view[0, 0][1], view[1, 0][1])


def test_order_is_a_permutation_by_seed_and_epoch():
    sampler = EpochSampler(50, seed=4)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        epochs, order = zip(*sampler, strict=True)
        assert set(epochs) == {epoch}
        assert sorted(order) == list(range(50))
        orders.append(order)
    assert orders[0] == orders[2] != orders[1]
    assert len(sampler) == 50
    other = EpochSampler(50, seed=5)
    assert [index for _, index in other] != list(orders[0])


def test_eval_view_is_the_image_in_own_memory():
    data = coded(20, 30)
    image, label = EvalView(data)[0]
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), data.pairs[0][0])
    np.testing.assert_array_equal(label.numpy(), data.pairs[0][1])
    assert image.is_contiguous()
    image.zero_()
    label.zero_()
    assert data.read(0)[0].any()
    assert data.read(0)[1].any()


def test_views_refuse():
    view = TrainView(coded(4, 4), Augmentation((4, 4)))
    with pytest.raises(TypeError, match="TrainView takes \\(epoch, index\\), not 0"):
        view[0]
    with pytest.raises(ValueError, match="seed=-1"):
        TrainView(coded(4, 4), Augmentation((4, 4)), seed=-1)
    with pytest.raises(ValueError, match="length=0"):
        EpochSampler(0)
    with pytest.raises(ValueError, match="epoch=-1"):
        EpochSampler(3).set_epoch(-1)
