"""Resized cross-entropy on the CPU: patches that need four exponentials per class, and steep cells beside them."""

import pytest
import torch

from cawa_fast._ops import native
from tests.support.cases import noise, smooth
from tests.support.losses import check, check_infinite_sample

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.why_not()))

SPAN = 33.0  # the largest change of a logit within a cell that is not steep
LANES = {"portable": 4, "baseline": 4, "avx2": 8, "avx512": 16}


@pytest.fixture(params=native.instruction_sets(), autouse=True)
def each_set(request):
    native.use_instruction_set(request.param)
    yield request.param
    native.use_instruction_set(native.instruction_sets()[-1])


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [(1, 4), (4, 1), (2, 2), (2, 3), (3, 4), (4, 2), (3, 5), (5, 6), (7, 3), (8, 8), (9, 1), (1, 17)],
)
def test_pixels_of_a_cell(rows, columns, corners):
    """Patches have one to four rows and columns, and a larger cell has several patches."""
    case = smooth(5, 2, (5, 6), (5 * rows, 6 * columns))
    check(*case, torch.rand(5), smoothing=0.1, corners=corners)
    check(*case, torch.rand(5), reduction="none", corners=corners, grad=torch.randn(case.target.shape))


@pytest.mark.parametrize("size", [(17, 23), (29, 41), (31, 30)])
@pytest.mark.parametrize("corners", [False, True])
def test_ratios_that_are_not_whole(size, corners):
    case = noise(6, 2, (7, 9), size)
    check(*case, torch.rand(6), smoothing=0.1, corners=corners)


@pytest.mark.parametrize("width", [1, 2, 7, 8, 14, 15, 16, 17, 31, 32, 33])
def test_widths_around_whole_vectors(width):
    """The output columns left of the first sample and right of the last one have cells of their own."""
    case = noise(4, 1, (3, width), (12, 4 * width))
    check(*case, torch.rand(4), reduction="none", grad=torch.randn(case.target.shape))
    check(*case, torch.rand(4), corners=True)


@pytest.mark.parametrize("classes", [2, 32, 33, 300])
def test_numbers_of_classes(classes):
    check(*smooth(classes, 1, (4, 20), (16, 80)), torch.rand(classes), smoothing=0.1)


def test_a_single_class_has_no_loss():
    loss, grad = check(*noise(1, 2, (4, 20), (16, 80)), torch.rand(1), reduction="none")
    assert not loss.any()
    assert not grad.any()


def shares_of_a_vanishing_class(logits, target):
    """``(h, w)`` bool: the samples with a gradient of the last class.

    Its probability is about e^-85. An exponential per pixel gives it a gradient, a patch the gradient 0.
    """
    logits = torch.cat((logits, logits[:, :1] - 85), 1)
    _, grad = check(logits, target, reduction="sum")
    return grad[0, -1] != 0


@pytest.mark.parametrize(("step", "steep"), [(0.33 * SPAN, False), (1.01 * SPAN, True), (5 * SPAN, True)])
@pytest.mark.parametrize("ratio", [4, 8])
def test_only_vectors_with_a_steep_cell_are_computed_pixel_by_pixel(step, steep, ratio, each_set):
    """One sample differs from the others.

    The bound on the change within a cell is the sum of the changes along both axes and of the mixed difference. If the
    sample is the first of the cell, the bound is three times the actual change.
    """
    lanes = LANES[each_set]
    logits = torch.zeros(1, 3, 7, 5 * lanes)
    row, column = 3, 2 * lanes + 1
    logits[0, 1, row, column] = -step
    expected = torch.zeros(logits.shape[2:], dtype=torch.bool)
    if steep:
        # Cell -1 is the first of the first vector, so that the sample's two cells are in vector 2, with the cells from
        # 2 * lanes - 1 to 3 * lanes - 2. A cell between two samples gives both a share.
        expected[row - 1 : row + 2, 2 * lanes - 1 : 3 * lanes] = True
    target = torch.zeros(1, 7 * ratio, 5 * lanes * ratio, dtype=torch.int64)
    assert shares_of_a_vanishing_class(logits, target).equal(expected)


def test_steep_cells_without_a_valid_label_cost_nothing():
    logits = 100 * torch.randn(1, 3, 4, 4)
    target = torch.full((1, 16, 16), 255)
    target[0, 0, 0] = 0  # in the first patch alone
    shares = shares_of_a_vanishing_class(logits, target)
    assert not shares[1:].any()


@pytest.mark.parametrize("span", [20.0, 32.0, 34.0, 60.0, 90.0, 200.0, 1e4])
@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_the_largest_logit_of_a_pixel_far_below_the_cells(span, ratio):
    """Peaks at single samples: between them all logits are low, and only their differences count."""
    logits = torch.randn(1, 4, 5, 18)
    logits[0, 0, ::2, ::2] += span
    target = torch.randint(0, 4, (1, 5 * ratio, 18 * ratio))
    check(logits, target, torch.rand(4), smoothing=0.1)
    check(logits, target, reduction="none")


@pytest.mark.parametrize("below", [20.0, 40.0, 55.0, 60.0, 64.0, 80.0, 90.0, 120.0])
@pytest.mark.parametrize("ratio", [3, 4, 8])
def test_a_class_that_falls_while_another_rises(ratio, below):
    """The second class is far below the reference at its first pixel, and may still be the largest at the last one."""
    logits = torch.full((1, 4, 5, 18), -150.0)
    change = 0.97 * SPAN * (torch.arange(18) % 2)
    logits[0, 0], logits[0, 1] = -change, change - below
    target = torch.randint(0, 2, (1, 5 * ratio, 18 * ratio))
    for turned, labels in ((logits, target), (logits.flip(3), target), (logits.mT, target.mT.contiguous())):
        check(turned, labels, torch.rand(4), smoothing=0.1)
        check(turned, labels, reduction="none")


@pytest.mark.parametrize("scale", [1.0, 8.0, 40.0, 1e4])
@pytest.mark.parametrize("ratio", [3, 4, 8])
def test_steep_and_gentle_cells_side_by_side(ratio, scale):
    case = noise(5, 2, (4, 21), (4 * ratio, 21 * ratio))
    logits = case.logits * torch.where(torch.rand(2, 1, 4, 21) < 0.1, scale, 1.0)
    check(logits, case.target, torch.rand(5), smoothing=0.1)


@pytest.mark.parametrize("distance", [50.0, 70.0, 100.0, 1000.0])
def test_a_label_without_probability(distance):
    """The label's exponential underflows beside the others, and its loss must still be correct."""
    logits = torch.randn(1, 3, 4, 20)
    logits[:, 0] += distance
    target = torch.zeros(1, 16, 80, dtype=torch.int64)
    target[0, 5, 6:30] = 1
    check(logits, target, reduction="none")
    check(logits, target, torch.rand(3), smoothing=0.2)


@pytest.mark.parametrize("value", [-1e6, -1e9, torch.finfo(torch.float32).min, -torch.inf])
def test_a_masked_out_class(value):
    """A class with extremely low logits does not change the losses of the others."""
    case = noise(6, 2, (4, 5), (16, 20))
    logits, target = case.logits.clone(), case.target.where(case.target != 0, 1)
    logits[:, 0] = value
    weight = torch.rand(6).index_fill(0, torch.tensor(0), 0)
    check(logits, target, weight)
    if value != -torch.inf:
        check(logits, target, weight, smoothing=0.1)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("sample", [(0, 0), (0, 1), (5, 6), (5, 5), (5, 3), (2, 6), (2, 3), (3, 0)])
def test_infinite_samples_affect_the_same_pixels_as_in_pytorch(sample, value):
    check_infinite_sample(*sample, value)


@pytest.mark.parametrize("ratio", [2, 4, 8])
def test_channels_last_and_16_bits(ratio):
    case = smooth(5, 2, (6, 18), (6 * ratio, 18 * ratio))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        logits = case.logits.to(dtype)
        _, grad = check(logits, case.target, torch.rand(5))
        assert grad.dtype == dtype
    check(case.logits.contiguous(memory_format=torch.channels_last), case.target, torch.rand(5))
    check(case.logits.repeat(1, 2, 2, 1)[:, ::2, 3:9], case.target)
