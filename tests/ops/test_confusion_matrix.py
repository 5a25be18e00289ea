"""``confusion_matrix`` against tables worked by hand, a loop over pixels, and torchmetrics."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import cawa_fast.functional as CF
from cawa_fast import reference
from tests.conftest import DEVICE
from tests.support.cases import CONTENTS, FLOATS, LABELS, LAYOUTS, RATIOS, noise

pytestmark = pytest.mark.usefixtures("backend")

C = 5


def by_pixel(prediction, target, num_classes, ignore_index=255):
    """The confusion matrix by a loop over pixels."""
    counts = [[0] * num_classes for _ in range(num_classes)]
    for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True):
        if t != ignore_index:
            counts[t][p] += 1
    return torch.tensor(counts)


def by_interpolation(logits, target, corners=False):
    """Predictions from the resized logits, which the operator never materialises, with its positions and rounding."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return reference.resize(logits.to(dtype), target.shape[1:], corners).argmax(1)


def test_by_hand():
    """Seven pixels of three classes; the one labelled 9 is ignored.

    ==========  =  =  =  =  =  =  =
    target      0  0  1  1  2  9  0
    prediction  0  1  1  1  0  2  2
    ==========  =  =  =  =  =  =  =
    """
    target = torch.tensor([[[0, 0, 1, 1, 2, 9, 0]]])
    prediction = torch.tensor([[[0, 1, 1, 1, 0, 2, 2]]])
    expected = torch.tensor([[1, 1, 1], [0, 2, 0], [1, 0, 0]])
    assert CF.confusion_matrix(prediction, target, num_classes=3, ignore_index=9).equal(expected)
    logits = F.one_hot(prediction, 3).permute(0, 3, 1, 2).float()
    assert CF.confusion_matrix(logits, target, ignore_index=9).equal(expected)


def test_resize_by_hand():
    """Two samples, resized to four pixels.

    With half-pixel centres these are at 0, 1/4, 3/4 and 1 of the way from one sample to the other, with aligned corners
    at thirds.

    =====================  ===  =====  =====  ===
    class 0, half-pixel     4    3      1      0
    class 1                 0    1.25   3.75   5
    class 0, corners        4    2.67   1.33   0
    class 1                 0    1.67   3.33   5
    =====================  ===  =====  =====  ===

    Both give the classes 0 0 1 1. With 2.8 as a constant third class, half-pixel centres still do, and aligned corners
    give 0 2 1 1.
    """
    target = torch.zeros(1, 1, 4, dtype=torch.uint8)
    for third, corners, row in [
        (0.0, False, [2, 2, 0]),
        (0.0, True, [2, 2, 0]),
        (2.8, False, [2, 2, 0]),
        (2.8, True, [1, 2, 1]),
    ]:
        logits = torch.tensor([[[[4.0, 0.0]], [[0.0, 5.0]], [[third, third]]]])
        counts = CF.confusion_matrix(logits, target, align_corners=corners)
        assert counts.tolist() == [row, [0, 0, 0], [0, 0, 0]]


@pytest.mark.sampled
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_logits(ratio, content, corners):
    case = CONTENTS[content](C, 2, *RATIOS[ratio])
    expected = by_pixel(by_interpolation(*case, corners), case.target, C)
    for layout in LAYOUTS.values():
        counts = CF.confusion_matrix(layout(case.logits), case.target, ignore_index=255, align_corners=corners)
        assert counts.dtype == torch.int64
        assert counts.equal(expected)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes_of_logits(dtype, labels):
    case = noise(C, 2, *RATIOS["non-integer"])
    logits, target = case.logits.to(dtype), case.target.to(labels)
    counts = CF.confusion_matrix(logits, target, ignore_index=255)
    assert counts.equal(by_pixel(by_interpolation(logits, target), case.target, C))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("predictions", LABELS)
def test_dtypes_of_predictions(predictions, labels):
    target = noise(C, 2, (1, 1), (40, 33)).target
    prediction = torch.randint(0, C, target.shape)
    counts = CF.confusion_matrix(prediction.to(predictions), target.to(labels), num_classes=C, ignore_index=255)
    assert counts.equal(by_pixel(prediction, target, C))


@pytest.mark.parametrize("scale", [1, 3])
def test_ties_go_to_the_lowest_class(scale):
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0, 2.0]).view(1, 5, 1, 1).expand(1, 5, 4, 4)
    target = torch.zeros(1, 4 * scale, 4 * scale, dtype=torch.uint8)
    assert CF.confusion_matrix(logits, target)[0].tolist() == [0, 16 * scale**2, 0, 0, 0]


@pytest.mark.parametrize("values", [[1.0, torch.nan, 9.0, torch.nan], [torch.inf, torch.nan, 0.0, 0.0]])
def test_nan_counts_as_the_largest_and_the_first_wins(values):
    logits = torch.tensor(values).view(1, 4, 1, 1)
    assert CF.confusion_matrix(logits, torch.zeros(1, 1, 1, dtype=torch.uint8))[0].tolist() == [0, 1, 0, 0]


def test_nan_spreads_to_the_pixels_that_read_it():
    logits = torch.zeros(1, 2, 1, 8)
    logits[0, 1, 0, 2] = torch.nan  # read by 8 of 32 pixels, those between samples 1 and 3
    counts = CF.confusion_matrix(logits, torch.zeros(1, 1, 32, dtype=torch.uint8))
    expected = F.interpolate(logits, (1, 32), mode="bilinear").argmax(1)
    assert counts[0].tolist() == [int((expected == 0).sum()), int((expected == 1).sum())]
    assert counts[0, 1] == 8


def test_infinities_at_equal_size():
    logits = torch.tensor([[-torch.inf, -torch.inf, -torch.inf], [0.0, torch.inf, 3e38]]).view(2, 3, 1, 1)
    counts = CF.confusion_matrix(logits, torch.tensor([0, 1]).view(2, 1, 1))
    assert counts.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("num_classes", [1, 2, 19, 150])
def test_torchmetrics(num_classes, torchmetrics):
    target = torch.randint(0, num_classes, (3, 31, 45))
    logits = torch.randn(3, num_classes, 31, 45)
    target[torch.rand(target.shape) < 0.2] = 255
    counts = CF.confusion_matrix(logits, target.to(torch.uint8), ignore_index=255)
    if num_classes == 1:  # torchmetrics rejects a single class
        assert counts.tolist() == [[int((target == 0).sum())]]
        return
    from torchmetrics.functional.classification import multiclass_confusion_matrix

    expected = multiclass_confusion_matrix(logits, target, num_classes, ignore_index=255)
    assert counts.equal(expected)
    assert CF.confusion_matrix(logits.argmax(1), target, num_classes=num_classes, ignore_index=255).equal(expected)


@pytest.mark.parametrize("dtype", LABELS)
def test_one_class_everywhere(dtype, backend):
    """One bin has all counts: more than 16 bits hold, and in compiled code more than float32 can count exactly."""
    slow = backend == "reference" or (backend == "triton" and DEVICE != "cuda")
    size = (420, 400) if slow else (4200, 4000)
    labels = torch.full((1, *size), 2, dtype=dtype)
    counts = CF.confusion_matrix(labels, labels, num_classes=3)
    assert counts.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, size[0] * size[1]]]


def test_strided_predictions_and_targets():
    whole = torch.randint(0, C, (2, 40, 66), dtype=torch.uint8)
    prediction, target = whole[:, ::2, 1::3], whole.mT[:, 1:23, 20:40].mT
    counts = CF.confusion_matrix(prediction, target, num_classes=C, ignore_index=1)
    assert counts.equal(by_pixel(prediction, target, C, ignore_index=1))
    assert counts[1].sum() == 0


def test_ignore_index_does_not_wrap_around_in_uint8():
    labels = torch.full((1, 2, 2), 156, dtype=torch.uint8)
    assert CF.confusion_matrix(labels, labels, num_classes=200, ignore_index=-100)[156, 156] == 4


def test_predictions_at_ignored_pixels_do_not_matter():
    prediction, target = torch.tensor([[[0, 200, 1]]]), torch.tensor([[[0, 255, 1]]])
    assert CF.confusion_matrix(prediction, target, num_classes=2, ignore_index=255).tolist() == [[1, 0], [0, 1]]


def test_a_prediction_equal_to_ignore_index_is_reported():
    """A prediction of 255 at a labelled pixel is out of range, whatever ``ignore_index`` is."""
    prediction, target = torch.tensor([[[0, 255, 1]]]), torch.tensor([[[0, 0, 1]]])
    with pytest.raises(ValueError, match=r"input: 1 pixel has the value 255.*2 classes"):
        CF.confusion_matrix(prediction, target, num_classes=2, ignore_index=255)


def test_the_result_is_not_part_of_a_graph():
    leaf = torch.randn(1, C, 4, 4, requires_grad=True)
    copy = leaf.detach().clone()
    assert not CF.confusion_matrix(leaf, torch.zeros(1, 8, 8, dtype=torch.uint8)).requires_grad
    assert leaf.equal(copy)


def labels(*shape, value=0, dtype=torch.int64):
    return torch.full(shape or (1, 4, 4), value, dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((labels(), labels()), {}, ValueError, "num_classes is needed"),
        ((labels(), labels()), {"num_classes": 0}, ValueError, "num_classes.*got 0"),
        ((torch.zeros(1, 3, 4, 4), labels()), {"num_classes": 4}, ValueError, "num_classes=4.*3 channels"),
        ((labels(1, 4, 5), labels()), {"num_classes": 2}, ValueError, r"\(1, 4, 4\).*\(1, 4, 5\)"),
        ((labels(value=7), labels()), {"num_classes": 3}, ValueError, "input: 16 pixels have the value 7.*0..2"),
        ((labels(value=-1), labels()), {"num_classes": 3}, ValueError, "input: 16 pixels have the value -1"),
        ((labels(), labels(value=3)), {"num_classes": 3}, ValueError, "target: 16 pixels have the value 3.*from 1"),
        ((labels(dtype=torch.bool), labels()), {"num_classes": 2}, TypeError, "input.*bool"),
        ((labels(), labels(dtype=torch.float32)), {"num_classes": 2}, TypeError, "target.*float32"),
        ((torch.zeros(1, 4, 4), labels()), {}, ValueError, r"input must be \(N, C, h, w\).*\(1, 4, 4\)"),
        ((torch.zeros(2, 3, 4, 4), labels()), {}, ValueError, r"target.*N = 2.*\(1, 4, 4\)"),
    ],
)
def test_errors_name_the_argument_and_the_value(arguments, options, error, message):
    with pytest.raises(error, match=message):
        CF.confusion_matrix(*arguments, **options)


def test_no_warnings_and_no_images():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts = CF.confusion_matrix(torch.zeros(0, C, 4, 4), labels(0, 8, 8))
    assert counts.equal(torch.zeros(C, C, dtype=torch.int64))
    assert CF.confusion_matrix(labels(0, 8, 8), labels(0, 8, 8), num_classes=2).sum() == 0
