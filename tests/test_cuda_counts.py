"""The counting kernels of ``csrc/cuda/`` on the CPU, by emulation: every way through them, threads in any order.

``test_confusion_matrix.py`` and ``test_cam_counts.py`` run on them too, with the backend "cuda emulation".
"""

import pytest
import torch

import emulation
from cases import CONTENTS, LAYOUTS, noise, smooth
from cawa_fast import _checks, reference

if emulation.why_not():
    pytest.skip(emulation.why_not(), allow_module_level=True)

CELLS, PIXELS = "confusion_matrix, cells", "confusion_matrix, pixels"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module", autouse=True)
def _library():
    emulation.load()


def confusion_matrix(input, target, ignore_index=255, corners=False, report=None):
    return torch.ops.cawa_fast_cuda_emulation.confusion_matrix(input, target, ignore_index, corners, report)


def check_confusion(input, target, corners=False, kernel=CELLS):
    emulation.launches()
    counts = confusion_matrix(input, target, corners=corners)
    assert emulation.launches() == [kernel]
    assert counts.equal(reference.confusion_matrix(input, target, input.shape[1], 255, corners))


@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize("classes", [1, 2, 19, 31, 33, 60, 150, 1030])
def test_numbers_of_classes(classes, make):
    """Up to 32: all pairs have a slot of their own. Beyond 1024 no class is left out before the argmax."""
    case = make(classes, 1, (5, 7), (20, 28))
    check_confusion(case.logits, case.target.where(case.target < classes, 255))


@pytest.mark.parametrize("low", [(9, 33), (17, 64), (1, 70)])
@pytest.mark.parametrize("ratio", [1.3, 2, 4, 8])
def test_blocks_and_their_borders(low, ratio):
    high = (round(low[0] * ratio), round(low[1] * ratio))
    for corners in (False, True):
        case = smooth(5, 2, low, high)
        check_confusion(case.logits, case.target, corners)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_sizes(layout, dtype):
    case = noise(7, 2, (45, 61), (45, 61))
    check_confusion(LAYOUTS[layout](case.logits.to(dtype)), case.target, kernel=PIXELS)


@pytest.mark.parametrize("content", CONTENTS)
def test_the_same_counts_in_any_order_of_threads(content):
    """A barrier too few would let some orders read what is not there yet."""
    library = emulation.load()
    case = CONTENTS[content](40, 2, (10, 34), (40, 136))
    expected = reference.confusion_matrix(case.logits, case.target, 40, 255, False)
    for seed in range(3):
        library.cawa_fast_emulated_seed(seed)
        assert confusion_matrix(case.logits, case.target).equal(expected)


@pytest.mark.parametrize("high", [(9, 13), (36, 52)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_bad_labels_are_reported_and_not_counted(dtype, high):
    case = noise(5, 2, (9, 13), high)
    case.target[0, :3] = 7
    case.target[1, 2, 4:9] = 99 if dtype == torch.uint8 else -3
    expected = reference.bad_labels(case.target, 5, 255)
    report = _checks.open_report("target", case.target.device, 5, 255)
    report[0] = 10  # what others have found before
    counts = confusion_matrix(case.logits, case.target.to(dtype), report=report)
    assert report.tolist() == [10 + expected[0], *expected[1:]]
    assert counts.equal(reference.confusion_matrix(case.logits, case.target, 5, 255, False))
    assert counts.equal(confusion_matrix(case.logits, case.target.to(dtype)))


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, -(2**40), -100, 300])
def test_any_ignore_index(value):
    case = noise(5, 1, (4, 6), (16, 24))
    target = case.target.where(case.target < 5, value)
    report = _checks.open_report("target", target.device, 5, value)
    counts = confusion_matrix(case.logits, target, ignore_index=value, report=report)
    assert report[0] == 0
    assert counts.equal(reference.confusion_matrix(case.logits, target, 5, value, False))


@pytest.mark.parametrize("shape", [(0, 5, 4, 4, 8, 8), (2, 5, 4, 4, 0, 8), (2, 5, 4, 4, 8, 0)])
def test_no_pixels(shape):
    target = torch.zeros(shape[0], *shape[4:], dtype=torch.uint8)
    assert confusion_matrix(torch.randn(shape[:4]), target).equal(torch.zeros(5, 5, dtype=torch.int64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input": torch.zeros(1, 3, 4)}, "input must be"),
        ({"target": torch.zeros(2, 8, 8).long()}, "input must be"),
        ({"target": torch.zeros(1, 8, 8)}, "target must be uint8"),
        ({"input": torch.zeros(1, 3, 4, 4).double()}, "input must be float32, bfloat16 or float16"),
        ({"input": torch.zeros(1, 0, 4, 4)}, "number of classes"),
        ({"input": torch.zeros(1, 3, 0, 4)}, "without samples"),
        ({"report": torch.zeros(2).long()}, "report must be contiguous int64 of 3"),
    ],
)
def test_errors(change, message):
    arguments = {"input": torch.zeros(1, 3, 4, 4), "target": torch.zeros(1, 8, 8).long()}
    with pytest.raises(RuntimeError, match=message):
        confusion_matrix(**(arguments | change))


def test_classes_more_than_two_to_the_31_elements_apart():
    """Memory that is not written to takes no place."""
    case, stride = noise(2, 1, (4, 6), (16, 24)), 2**31 + 8
    logits = torch.empty(stride + 24, dtype=torch.bfloat16).as_strided((1, 2, 4, 6), (24, stride, 6, 1))
    logits.copy_(case.logits)
    check_confusion(logits, case.target.where(case.target < 2, 255))
