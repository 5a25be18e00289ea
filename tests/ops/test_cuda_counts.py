"""The counting kernels of ``csrc/cuda/``, emulated on the CPU: every code path, and threads in any order.

``test_confusion_matrix.py`` and ``test_cam_counts.py`` also run on them, with the backend "cuda emulation".
"""

import pytest
import torch

from cawa_fast import _label_check, reference
from cawa_fast._ops import backends
from tests.support import emulation
from tests.support.cases import CONTENTS, LAYOUTS, noise, smooth

if emulation.why_not():
    pytest.skip(emulation.why_not(), allow_module_level=True)

CELLS, PIXELS = "confusion_matrix, cells", "confusion_matrix, pixels"
MAXIMA, MASKS = "cam_counts, maxima", "cam_counts, masks"
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
    """Up to 32 classes, each pair has a counter of its own. Above 1024, the argmax compares all classes."""
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
    """If a barrier were missing, some orders of threads would read values before they are written."""
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
    report = _label_check.open_report("target", case.target.device, 5, 255)
    report[0] = 10  # pixels found by earlier calls
    counts = confusion_matrix(case.logits, case.target.to(dtype), report=report)
    assert report.tolist() == [10 + expected[0], *expected[1:]]
    assert counts.equal(reference.confusion_matrix(case.logits, case.target, 5, 255, False))
    assert counts.equal(confusion_matrix(case.logits, case.target.to(dtype)))


@pytest.mark.parametrize("value", [-(2**63), 2**63 - 1, -(2**40), -100, 300])
def test_any_ignore_index(value):
    case = noise(5, 1, (4, 6), (16, 24))
    target = case.target.where(case.target < 5, value)
    report = _label_check.open_report("target", target.device, 5, value)
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
    """The tensor spans more than 4 GB, but the system allocates only pages that are written."""
    case, stride = noise(2, 1, (4, 6), (16, 24)), 2**31 + 8
    logits = torch.empty(stride + 24, dtype=torch.bfloat16).as_strided((1, 2, 4, 6), (24, stride, 6, 1))
    logits.copy_(case.logits)
    check_confusion(logits, case.target.where(case.target < 2, 255))


@pytest.mark.parametrize(
    ("low", "high", "corners", "taken"),
    [
        ((4, 6), (32, 48), False, True),
        ((4, 6), (33, 48), False, False),  # some cells have nine rows
        ((4, 6), (24, 40), True, True),
        ((4, 6), (25, 40), True, False),
        ((1, 1), (8, 8), True, True),
        ((40, 60), (3, 5), False, True),
        ((4, 6), (4, 6), False, True),
    ],
)
def test_large_cells_are_left_to_other_kernels(low, high, corners, taken):
    target = torch.zeros(1, *high, dtype=torch.uint8)
    assert backends.counts_by_cells(torch.zeros(1, 2, *low), target, corners) == taken


# ---------------------------------------------------------------------------------------------------------- CAM counts


def cam_counts(cam, target, tau=0.5, normalize="max", classes="present", ignore_index=255, corners=False):
    truth, _ = torch.ops.cawa_fast_cpu.label_histogram(target, cam.shape[1], ignore_index)
    return torch.ops.cawa_fast_cuda_emulation.cam_counts(
        cam, target, truth, tau, normalize == "max", classes == "all", ignore_index, corners
    )


def check_cam(cam, target, tau=0.5, normalize="max", classes="present", corners=False):
    emulation.launches()
    counts = cam_counts(cam, target, tau, normalize, classes, corners=corners)
    assert emulation.launches() == ([MAXIMA, MASKS] if normalize == "max" else [MASKS])
    expected = reference.cam_counts(cam, target, tau, normalize, classes, 255, corners)
    assert all(map(torch.equal, counts, expected))


@pytest.mark.parametrize("make", [noise, smooth])
@pytest.mark.parametrize("classes", [1, 5, 19, 255, 300])
def test_maps(classes, make):
    """A block selects the classes to count from 256 classes at a time."""
    case = make(classes, 2, (5, 7), (20, 28))
    target = case.target.where(case.target < classes, 255)
    for normalize in ("max", "none"):
        for scored in ("present", "all"):
            check_cam(case.logits.relu(), target, normalize=normalize, classes=scored)


@pytest.mark.parametrize("low", [(9, 33), (17, 64), (1, 70)])
@pytest.mark.parametrize("ratio", [0.7, 1, 1.3, 4, 8])
def test_blocks_of_maps_and_their_borders(low, ratio):
    high = (round(low[0] * ratio) or 1, round(low[1] * ratio))
    for corners in (False, True):
        case = smooth(5, 2, low, high)
        check_cam(case.logits.relu(), case.target, corners=corners)
        check_cam(case.logits, case.target, corners=corners)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("value", [1.0, 0.1, 3e38, 1e-38, 1e-45])
def test_maps_that_are_all_alike(value, corners):
    """In a constant map, pixels differ only by rounding. None may exceed tau = 1."""
    cam = torch.full((1, 2, 9, 40), value)
    cam[0, 1, :, 20:] *= 1 + 2**-23
    target = torch.randint(0, 2, (1, 31, 150), dtype=torch.uint8)
    for tau in (0.0, 0.5, 1 - 2**-23, 1.0):
        check_cam(cam, target, tau, corners=corners)


@pytest.mark.parametrize("first", [-torch.inf, torch.inf, torch.nan])
def test_infinities_where_their_weight_is_zero(first):
    """0 * inf is NaN, and the maximum of the map is NaN even if no sample of that cell is positive."""
    target = torch.zeros(1, 1, 41, dtype=torch.uint8)
    for place in (0, 1, 19, 20):
        cam = torch.cat((torch.full((20,), -1.0), torch.tensor([5.0]))).view(1, 1, 1, 21)
        cam[..., place] = first
        check_cam(cam, target, corners=True)
        check_cam(cam, target)
        check_cam(cam, target, 0.0, "none", corners=True)


@pytest.mark.parametrize("top", [1e-40, 1e-30, 0.7, 3.0, 1e30, 3e38])
@pytest.mark.parametrize("tau", [0.0, 1e-40, 1e-7, 0.1, 0.5, 1.0])
def test_thresholds_in_any_magnitude(tau, top):
    """Where quotients are subnormal, many values have the same quotient."""
    steps = torch.tensor([0, 1e-10, 0.5, 1 - 2**-23, 1, 1 + 2**-23, 2])
    values = (torch.tensor(tau) * top * steps).clamp_(max=top)
    check_cam(torch.cat((values, torch.tensor([top]))).view(1, 1, 1, -1), torch.zeros(1, 1, 8).byte(), tau)


@pytest.mark.parametrize("content", CONTENTS)
def test_the_same_cam_counts_in_any_order_of_threads(content):
    library = emulation.load()
    case = CONTENTS[content](7, 2, (10, 34), (40, 136))
    if len(case.target) == 0:
        return
    expected = reference.cam_counts(case.logits, case.target, 0.3, "max", "present", 255, False)
    for seed in range(3):
        library.cawa_fast_emulated_seed(seed)
        assert all(map(torch.equal, cam_counts(case.logits, case.target, 0.3), expected))


@pytest.mark.parametrize("shape", [(0, 5, 4, 4, 8, 8), (2, 5, 4, 4, 0, 8)])
@pytest.mark.parametrize("normalize", ["max", "none"])
def test_no_pixels_to_count(shape, normalize):
    target = torch.zeros(shape[0], *shape[4:], dtype=torch.uint8)
    counts = torch.ops.cawa_fast_cuda_emulation.cam_counts(
        torch.randn(shape[:4]), target, torch.zeros(shape[0], 5).long(), 0.5, normalize == "max", False, 255, False
    )
    assert all(x.tolist() == [0] * 5 for x in counts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cam": torch.zeros(1, 3, 4)}, "cam must be"),
        ({"truth": torch.zeros(1, 2).long()}, "truth must be contiguous int64 of 1 x 3"),
        ({"tau": -0.1}, "tau must not be negative"),
    ],
)
def test_errors_of_cam_counts(change, message):
    arguments = {"cam": torch.zeros(1, 3, 4, 4), "target": torch.zeros(1, 8, 8).long()}
    arguments |= {"truth": torch.zeros(1, 3).long(), "tau": 0.5} | change
    with pytest.raises(RuntimeError, match=message):
        torch.ops.cawa_fast_cuda_emulation.cam_counts(*arguments.values(), True, False, 255, False)
