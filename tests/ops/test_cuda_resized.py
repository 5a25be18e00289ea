"""Resized cross-entropy in CUDA C++, emulated on the CPU: edge cases of its cells, blocks and exponentials."""

import pytest
import torch

from cawa_fast._ops import backends
from tests.support import emulation
from tests.support.cases import noise, smooth
from tests.support.losses import check, check_infinite_sample

pytestmark = pytest.mark.skipif(emulation.why_not() is not None, reason=str(emulation.why_not()))

SPAN = 33.0  # the largest change of a logit within a cell that is not steep


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    emulation.use(monkeypatch)


def loss_and_statistics(logits, target, corners=False, *, offset=None, gamma=0.0):
    scale = torch.ones(logits.shape[1])
    return torch.ops.cawa_fast_cuda_emulation.resized_cross_entropy(
        logits, target, None, offset, scale, 255, False, 0.0, gamma, corners, True
    )


def steep_cells(logits, target, corners=False, offset=None):
    """``(N, h + 1, w + 1)`` bool: the cells that are computed pixel by pixel."""
    _, statistics = loss_and_statistics(logits, target, corners, offset=offset)
    images, _, height, width = logits.shape
    cells = images * (height + 1) * (width + 1)
    return statistics[:cells].view(images, height + 1, width + 1).isposinf()


# A block has 128 cells in the forward pass, and 31 columns of samples by 5 or 9 rows in the backward pass.
SIZES = {
    "one cell between": ((2, 2), (6, 6)),
    "one block's columns": ((3, 31), (12, 124)),
    "a column more": ((3, 32), (6, 64)),
    "a strip's rows": ((9, 5), (36, 20)),
    "a row more": ((10, 5), (40, 20)),
    "rows of large cells": ((11, 3), (80, 17)),
    "many blocks": ((21, 70), (42, 140)),
    "different ratios": ((6, 5), (24, 15)),
    "not whole": ((7, 9), (45, 31)),
}


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sizes(size, corners):
    case = smooth(5, 4, *SIZES[size])
    assert backends.resized_side(case.logits, case.target, corners)
    check(*case, torch.rand(5), smoothing=0.1, corners=corners)
    check(*case, torch.rand(5), reduction="none", corners=corners, grad=torch.randn(case.target.shape))
    check(*case, torch.rand(5), gamma=2.0, offset=torch.randn(5), corners=corners)


@pytest.mark.parametrize("side", [2, 4, 8])
@pytest.mark.parametrize("classes", [1, 3, 4, 5, 31, 32, 33, 70])
def test_numbers_of_classes(classes, side):
    """Warps exchange four classes at a time, and labels are marked in words of 32 classes."""
    case = noise(classes, 1, (4, 5), (4 * side, 5 * side))
    check(*case, torch.rand(classes))


def test_the_largest_number_of_classes():
    case = noise(4096, 1, (2, 2), (4, 4))
    assert backends.resized_side(*case, False) == 2
    assert backends.resized_side(case.logits.repeat(1, 2, 1, 1), case.target, False) == 0
    check(*case)


def test_sizes_that_are_not_supported():
    def side(low, high, corners=False):
        return backends.resized_side(torch.empty(1, 3, *low), torch.empty(1, *high), corners)

    assert side((4, 4), (32, 32)) == 8
    assert side((4, 4), (33, 32)) == 0  # more than 8 pixels in a cell
    assert side((4, 4), (25, 25), True) == 8
    assert side((4, 4), (26, 25), True) == 0
    assert side((4, 4), (3, 8)) == 0  # fewer rows than the logits
    assert side((1, 4), (4, 8)) == 0  # a single row of samples
    assert side((8, 8), (64, 8)) == 0  # 8 x 1 pixels in a cell for 8 x 8


@pytest.mark.parametrize(("step", "steep"), [(0.33 * SPAN, False), (1.01 * SPAN, True)])
def test_the_cells_around_a_steep_sample_are_steep_and_no_others(step, steep):
    """One sample differs from the others.

    The bound on the change within a cell is the sum of the changes along both axes and of the mixed difference. If the
    sample is the first of the cell, the bound is three times the actual change.
    """
    logits = torch.zeros(1, 4, 6, 7)
    logits[0, 2, 3, 4] = step
    target = torch.zeros(1, 24, 28, dtype=torch.int64)
    expected = torch.zeros(1, 7, 8, dtype=torch.bool)
    if steep:
        expected[0, 3:5, 4:6] = True  # sample (3, 4) lies between cells (2, 3) and (3, 4); the first cell is (-1, -1)
    assert steep_cells(logits, target).equal(expected)
    check(logits, target)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_cells_with_samples_that_are_not_finite_are_steep(value):
    logits = torch.randn(1, 4, 6, 7)
    logits[0, 1, 0, 0] = value  # a corner sample also lies in the half cells before it
    target = torch.zeros(1, 24, 28, dtype=torch.int64)
    expected = torch.zeros(1, 7, 8, dtype=torch.bool)
    expected[0, :2, :2] = True
    assert steep_cells(logits, target).equal(expected)


def test_a_label_without_probability_is_computed_pixel_by_pixel():
    """The label's exponential underflows beside the others, and its loss must still be correct."""
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 200
    target = torch.zeros(1, 16, 16, dtype=torch.int64)
    target[0, 5, 6] = 1
    assert steep_cells(logits, target).sum() == 1
    check(logits, target, reduction="none")


def test_ignored_labels_make_no_cell_steep():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0] = 200
    assert not steep_cells(logits, torch.full((1, 16, 16), 255)).any()


@pytest.mark.parametrize("value", [-1e6, -1e9, torch.finfo(torch.float32).min])
def test_a_masked_out_class_with_label_smoothing(value):
    """A class with weight 0 and extremely low logits does not change the losses of the others."""
    case = noise(6, 2, (4, 5), (16, 20))
    logits, target = case.logits.clone(), case.target.where(case.target != 0, 1)
    logits[:, 0] = value
    weight = torch.rand(6).index_fill(0, torch.tensor(0), 0)
    check(logits, target, weight, smoothing=0.1)
    assert check(logits, target, weight, smoothing=0.1, reduction="none")[0].isfinite().all()


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("corner", [(0, 0), (5, 6), (5, 3), (2, 6), (2, 3)])
def test_infinite_samples_affect_the_same_pixels_as_in_pytorch(corner, value):
    check_infinite_sample(*corner, value)


@pytest.mark.parametrize("offset", [-100.0, 100.0])
@pytest.mark.parametrize("shift", [0.0, 60.0, 300.0])
def test_references(shift, offset):
    """The reference of the exponentials is a logit of the first class until a class far above it replaces it."""
    case = smooth(6, 2, (5, 6), (20, 24))
    logits = case.logits + shift * torch.arange(6.0).view(-1, 1, 1) + offset
    check(logits, case.target, torch.rand(6), smoothing=0.1)
    check(logits.flip(1), case.target, torch.rand(6), reduction="none")
    offsets = shift * torch.arange(6.0) + offset
    check(case.logits, case.target, torch.rand(6), smoothing=0.1, offset=offsets)
    check(case.logits, case.target, torch.rand(6), gamma=2.0, offset=offsets.flip(0))


def test_an_offset_changes_no_slope():
    """However large it is, the cells remain gentle; only a label without probability is computed pixel by pixel."""
    case = smooth(6, 2, (5, 6), (20, 24))
    offset = torch.tensor([-1e4, 0.0, 300.0, -40.0, 7.0, 1e4])
    assert not steep_cells(case.logits, torch.full_like(case.target, 5), offset=offset).any()
    assert steep_cells(case.logits, torch.full_like(case.target, 4), offset=offset).all()


@pytest.mark.parametrize("side", [2, 4, 8])
def test_statistics_of_a_focal_loss(side, monkeypatch):
    """They have a second value per pixel, and the compiler's idea of their size is right."""
    case = noise(5, 2, (4, 5), (4 * side, 5 * side))
    assert backends.resized_side(*case, False) == side
    _, plain = loss_and_statistics(*case)
    _, focal = loss_and_statistics(*case, gamma=2.0)
    assert (plain.numel(), focal.numel()) == ((1 + side**2) * 60, (1 + 2 * side**2) * 60)  # 2 images of 5 x 6 cells
    monkeypatch.setattr(backends, "is_cuda_resized", lambda *arguments: True)
    for gamma, statistics in ((0.0, plain), (2.0, focal)):
        assert backends.statistics_size(*case, gamma, False) == statistics.numel()
    assert focal[: plain.numel()].view(torch.int32).equal(plain.view(torch.int32))


@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0, 1e4])
@pytest.mark.parametrize("side", [2, 4, 8])
def test_steep_and_gentle_cells_side_by_side(side, scale):
    case = noise(5, 2, (4, 5), (4 * side, 5 * side))
    logits = case.logits * torch.where(torch.rand(2, 1, 4, 5) < 0.2, scale, 1.0)
    check(logits, case.target, torch.rand(5), smoothing=0.1)
    check(logits, case.target, torch.rand(5), gamma=2.0, offset=3 * torch.randn(5))


def test_the_order_of_threads_does_not_matter():
    case = noise(7, 2, (12, 34), (48, 136))
    library, results = emulation.load(), []
    for seed in range(3):
        library.cawa_fast_emulated_seed(seed)
        leaf = case.logits.clone().requires_grad_()
        loss, statistics = loss_and_statistics(leaf.detach(), case.target)
        grad = torch.ops.cawa_fast_cuda_emulation.resized_cross_entropy_backward(
            torch.ones(()), case.logits, case.target, None, None, torch.ones(7), statistics, 255, 0.0, 0.0, False
        )
        results.append((loss, statistics, grad))
    library.cawa_fast_emulated_seed(0)
    for result in results[1:]:
        assert all(a.view(torch.int32).equal(b.view(torch.int32)) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed", "expanded"])
def test_layouts(layout):
    case = smooth(5, 2, (6, 8), (24, 32))
    logits = {
        "channels_last": case.logits.contiguous(memory_format=torch.channels_last),
        "sliced": case.logits.repeat(1, 2, 2, 1)[:, ::2, 3:9],
        "transposed": case.logits.mT.contiguous().mT,
        "expanded": case.logits[:1].expand(2, -1, -1, -1),
    }[layout]
    check(logits, case.target, torch.rand(5))


def test_launches():
    case = smooth(5, 2, (6, 8), (24, 32))
    emulation.launches()
    _, statistics = loss_and_statistics(*case)
    assert [name.removeprefix("resized_cross_entropy") for name in emulation.launches()] == [
        "",
        ", steep cells",
        ", sum",
    ]
    torch.ops.cawa_fast_cuda_emulation.resized_cross_entropy_backward(
        torch.ones(()), *case, None, None, torch.ones(5), statistics, 255, 0.0, 0.0, False
    )
    assert len(emulation.launches()) == 2
