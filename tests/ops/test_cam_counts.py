"""``cam_counts`` against tables worked by hand and against the libraries whose order of normalisation it offers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cawa_fast.functional as CF
from cawa_fast import reference
from tests.support.cases import CONTENTS, FLOATS, LABELS, LAYOUTS, RATIOS, noise

pytestmark = pytest.mark.usefixtures("backend")

NORMALIZE = ("max", "minmax", "gradcam", "none")


def lists(counts):
    assert all(c.dtype == torch.int64 for c in counts)
    return [c.tolist() for c in counts]


# Four pixels: labels 0 1 1 and one ignored; three maps at label resolution. With tau = 0.5
#
#             map                max: x / top             minmax: (x - low) / span   gradcam: ReLU, then minmax
#   class 0   4    3    2.4  1   1    .75   .6   .25  ->  1  .67  .47   0            1  .67  .47  0
#   mask                         *    *     *    .        *  *    .     .            *  *    .    .
#   class 1  -4    2    4    2   -1   .5    1    .5       0  .75  1     .75          0  .5   1    .5
#   mask                         .    .     *    .        .  *    *     *            .  .    *    .
#   class 2   0    3.5  6    8   0    .4375 .75  1        as max: the minimum is 0   as max
#   mask                         .    .     *    *        .  .    *     *            .  .    *    *
#
# "none" compares the maps themselves: class 0 * * * *, class 1 . * * *, class 2 . * * *. Class 2's maximum 8 is at the
# ignored pixel and still normalises the map; without it 3.5 / 6 = 0.58 would exceed tau. The last column is ignored.
CAM = torch.tensor([[4.0, 3.0, 2.4, 1.0], [-4.0, 2.0, 4.0, 2.0], [0.0, 3.5, 6.0, 8.0]]).view(1, 3, 1, 4)
TARGET = torch.tensor([0, 1, 1, 255]).view(1, 1, 4)
BY_HAND = {  # tp, fp where all classes are scored, fn
    "max": ([1, 1, 0], [2, 0, 1], [0, 1, 0]),
    "minmax": ([1, 2, 0], [1, 0, 1], [0, 0, 0]),
    "gradcam": ([1, 1, 0], [1, 0, 1], [0, 1, 0]),
    "none": ([1, 2, 0], [2, 0, 2], [0, 0, 0]),
}


@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_by_hand(normalize, classes):
    tp, fp, fn = BY_HAND[normalize]
    if classes == "present":
        fp = [*fp[:2], 0]  # the image has no label 2
    assert lists(CF.cam_counts(CAM, TARGET, normalize=normalize, classes=classes, ignore_index=255)) == [tp, fp, fn]


# Three samples, 0 8 4, resized to two pixels at 0.25 and 1.75: .75 * 0 + .25 * 8 = 2 and .25 * 8 + .75 * 4 = 5.
#
#   max      2/5 = .4         5/5 = 1
#   minmax   0 1 .5  ->  .25  .625
#   gradcam  0 1 .5  ->  .25  .625  ->  0  1
#   none     2                5
@pytest.mark.parametrize(
    ("normalize", "tau", "tp"),
    [
        ("max", 0.3, 2),
        ("max", 0.7, 1),
        ("minmax", 0.2, 2),
        ("minmax", 0.3, 1),
        ("minmax", 0.7, 0),
        ("gradcam", 0.2, 1),
        ("gradcam", 0.7, 1),
        ("none", 0.7, 2),
    ],
)
def test_order_of_resize_and_normalisation_by_hand(normalize, tau, tp):
    cam = torch.tensor([0.0, 8.0, 4.0]).view(1, 1, 1, 3)
    counts = CF.cam_counts(cam, torch.zeros(1, 1, 2, dtype=torch.uint8), normalize=normalize, tau=tau)
    assert lists(counts) == [[tp], [0], [2 - tp]]


def test_align_corners_by_hand():
    """8 2, resized to four pixels, is 8 6.5 3.5 2 with half-pixel centres and 8 6 4 2 with aligned corners.

    The threshold, 0.45 * 8 = 3.6, lies between 3.5 and 4.
    """
    cam = torch.tensor([8.0, 2.0]).view(1, 1, 1, 2)
    target = torch.zeros(1, 1, 4, dtype=torch.uint8)
    assert CF.cam_counts(cam, target, tau=0.45).tp.item() == 2
    assert CF.cam_counts(cam, target, tau=0.45, align_corners=True).tp.item() == 3


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("normalize", NORMALIZE)
def test_a_threshold_that_is_hit_exactly_is_not_exceeded(normalize, dtype):
    top = 1 if normalize == "none" else 8
    cam = torch.tensor([0.0, 0.25, 0.5, 0.5, 0.75, 1.0], dtype=dtype).mul(top).view(1, 1, 1, 6)
    target = torch.zeros(1, 1, 6, dtype=torch.uint8)
    for tau, tp in [(0.0, 5), (0.25, 4), (0.5, 2), (0.75, 1), (1.0, 0)]:
        assert CF.cam_counts(cam, target, normalize=normalize, tau=tau).tp.item() == tp


@pytest.mark.parametrize("tau", [0.1, 0.3, 0.35, 0.7, 0.9])
def test_decimal_thresholds_compare_in_float32(tau):
    """3 / 10 and 0.3 are the same float32, so that the one does not exceed the other."""
    cam = torch.arange(0, 101, dtype=torch.float32).view(1, 1, 1, 101)
    tp = CF.cam_counts(cam, torch.zeros(1, 1, 101, dtype=torch.uint8), tau=tau).tp.item()
    assert tp == sum(np.float32(k) / np.float32(100) > np.float32(tau) for k in range(101)) == 100 - round(100 * tau)


@pytest.mark.parametrize("size", [(2, 3), (5, 9)])
@pytest.mark.parametrize("normalize", ["max", "minmax", "gradcam"])
@pytest.mark.parametrize(
    "values",
    [[0.0] * 6, [0, 1, torch.nan, 2, 0, 0], [0, 1, torch.inf, 2, 0, 0], [torch.nan] * 6, [-1, -1, -1, -1, -1, -1]],
    ids=["zero", "one NaN", "one infinity", "all NaN", "negative"],
)
def test_maps_that_cannot_be_normalised_give_an_empty_mask(values, normalize, size):
    cam = torch.tensor(values, dtype=torch.float32).view(1, 1, 2, 3)
    counts = CF.cam_counts(cam, torch.zeros(1, *size, dtype=torch.uint8), tau=0.0, normalize=normalize)
    assert lists(counts) == [[0], [0], [size[0] * size[1]]]


def test_an_invalid_map_does_not_affect_other_classes_and_images():
    cam = torch.rand(2, 3, 6, 6) + 0.1
    target = torch.randint(0, 3, (2, 24, 24))
    clean = CF.cam_counts(cam, target)
    cam[1, 1, 2, 3] = torch.nan
    dirty = CF.cam_counts(cam, target)
    for a, b in zip(clean, dirty, strict=True):
        assert a[[0, 2]].equal(b[[0, 2]])
    assert dirty.tp[1] == CF.cam_counts(cam[:1], target[:1]).tp[1]


def test_presence_is_judged_in_each_image():
    """Class 1 is only in the second image. Its false positives in the first one are not scored."""
    cam = torch.tensor([[[1.0, 0.0]], [[0.9, 1.0]]]).expand(2, 2, 1, 2)
    target = torch.tensor([[[0, 0]], [[1, 0]]])
    assert lists(CF.cam_counts(cam, target)) == [[1, 1], [1, 1], [2, 0]]
    assert lists(CF.cam_counts(cam, target, classes="all")) == [[1, 1], [1, 3], [2, 0]]


def test_a_class_whose_only_pixels_are_ignored_is_absent():
    cam = torch.ones(1, 2, 1, 3)
    target = torch.tensor([[[0, 1, 0]]])
    assert lists(CF.cam_counts(cam, target, ignore_index=1)) == [[2, 0], [0, 0], [0, 0]]


def by_definition(cam, target, tau, normalize, classes, corners):
    """Counts from masks at label resolution, one image and one class at a time."""
    dtype = torch.float64 if cam.dtype == torch.float64 else torch.float32
    counts = torch.zeros(3, cam.shape[1], dtype=torch.int64)

    def minmax(x):
        span = x.max() - x.min()
        return (x - x.min()) / span if 0 < span < torch.inf else torch.full_like(x, -1)

    def resized(x):
        return reference.resize(x[None, None], y.shape, corners)[0, 0]

    for maps, y in zip(cam.to(dtype), target.long(), strict=True):
        for c, x in enumerate(maps):
            if normalize == "max":
                x = resized(x)
                x = x / x.max() if 0 < x.max() < torch.inf else torch.full_like(x, -1)
            elif normalize == "minmax":
                x = resized(minmax(x))
            elif normalize == "gradcam":
                first = x.relu() if x.isnan().any() else minmax(x.relu())
                x = minmax(resized(first.clamp_min(0)))
            else:
                x = resized(x)
            mask, truth, valid = x > torch.tensor(tau, dtype=dtype), y == c, y != 255
            if classes == "all" or truth.any():
                counts[0, c] += (mask & truth).sum()
                counts[1, c] += (mask & ~truth & valid).sum()
                counts[2, c] += (~mask & truth).sum()
    return counts.tolist()


@pytest.mark.sampled
@pytest.mark.parametrize("classes", ["present", "all"])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_definition(ratio, content, normalize, classes):
    case = CONTENTS[content](5, 2, *RATIOS[ratio])
    cam = case.logits.relu() if normalize != "minmax" else case.logits
    for corners in (False, True):
        options = {"normalize": normalize, "classes": classes, "align_corners": corners}
        counts = CF.cam_counts(cam, case.target, tau=0.4, ignore_index=255, **options)
        assert lists(counts) == by_definition(cam, case.target, 0.4, normalize, classes, corners)
        if len(cam) and not (normalize == "none" and content == "not_finite"):
            truth = torch.bincount(case.target[case.target != 255].flatten(), minlength=5)
            assert (counts.tp + counts.fn).equal(truth)


@pytest.mark.sampled
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(dtype, labels):
    case = noise(5, 2, *RATIOS["non-integer"])
    cam = case.logits.to(dtype).relu()
    counts = CF.cam_counts(cam, case.target.to(labels), ignore_index=255)
    assert lists(counts) == by_definition(cam, case.target, 0.5, "max", "present", False)


@pytest.mark.sampled
@pytest.mark.parametrize("content", ["noise", "smooth", "ties"])
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, normalize, content):
    case = CONTENTS[content](5, 3, *RATIOS["non-integer"])
    options = {"normalize": normalize, "ignore_index": 255, "classes": "all"}
    expected = CF.cam_counts(case.logits.relu(), case.target, **options)
    target = case.target.mT.contiguous().mT
    counts = CF.cam_counts(LAYOUTS[layout](case.logits.relu()), target, **options)
    assert lists(counts) == lists(expected)


@pytest.mark.slow_in_interpreter
@pytest.mark.sampled
@pytest.mark.parametrize("content", ["noise", "smooth"])
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer", "anisotropic"])
def test_order_of_pytorch_grad_cam(ratio, content, reference_libraries):
    from pytorch_grad_cam.utils.image import scale_cam_image

    case = CONTENTS[content](5, 3, *RATIOS[ratio])
    cam = case.logits.relu()
    counts = CF.cam_counts(cam, case.target, normalize="gradcam", classes="all", ignore_index=255)
    high = case.target.shape[:0:-1]
    scaled = torch.stack([torch.tensor(scale_cam_image(scale_cam_image(c, high))) for c in cam.cpu().numpy()])
    assert_agree(counts, scaled, case.target)


@pytest.mark.sampled
@pytest.mark.parametrize("content", ["noise", "smooth"])
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer", "anisotropic"])
def test_order_of_torchcam(ratio, content, reference_libraries):
    from torchcam.methods.core import _CAM

    case = CONTENTS[content](5, 3, *RATIOS[ratio])
    cam = case.logits.relu()
    counts = CF.cam_counts(cam, case.target, normalize="minmax", classes="all", ignore_index=255)
    scaled = _CAM._normalize(cam.clone(), spatial_dims=2)
    assert_agree(counts, F.interpolate(scaled, case.target.shape[1:], mode="bilinear"), case.target)


def assert_agree(counts, normalised, target):
    """Assert equal counts, except for at most 2 pixels whose value is within 1e-5 of the threshold.

    That covers the libraries' rounding and the 1e-7 that they add to denominators.
    """
    for c in range(5):
        truth, valid, at = target == c, target != 255, normalised[:, c]
        for count, where, sign in [(counts.tp, truth, 1), (counts.fp, valid & ~truth, 1), (counts.fn, truth, -1)]:
            least, most = ((((at - 0.5) * sign > m) & where).sum() for m in (1e-5, -1e-5))
            assert least <= count[c] <= most
            assert most - least <= 2


def test_the_callers_tensors_are_not_changed():
    cam, target = torch.randn(2, 5, 6, 6, requires_grad=True), torch.randint(0, 5, (2, 6, 6))
    copies = cam.detach().clone(), target.clone()
    for normalize in NORMALIZE:
        assert not any(c.requires_grad for c in CF.cam_counts(cam, target, normalize=normalize))
    assert cam.equal(copies[0])
    assert target.equal(copies[1])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cam": torch.zeros(1, 3, 4, 4, dtype=torch.int32)}, TypeError, "cam.*int32"),
        ({"cam": torch.zeros(3, 4, 4)}, ValueError, r"cam must be \(N, C, h, w\).*\(3, 4, 4\)"),
        ({"target": torch.zeros(2, 8, 8, dtype=torch.uint8)}, ValueError, r"target.*N = 1.*\(2, 8, 8\)"),
        ({"target": torch.zeros(1, 1, 8, 8, dtype=torch.uint8)}, ValueError, r"\(1, 1, 8, 8\).*squeeze"),
        ({"target": torch.zeros(1, 8, 8)}, TypeError, "target.*float32"),
        ({"target": torch.full((1, 8, 8), 9)}, ValueError, "target: 64 pixels have the value 9"),
        ({"tau": 1.5}, ValueError, r"tau.*\[0, 1\].*1.5"),
        ({"tau": float("nan")}, ValueError, "tau.*nan"),
        ({"normalize": "softmax"}, ValueError, "normalize.*gradcam.*'softmax'"),
        ({"classes": "some"}, ValueError, "classes.*present, all.*'some'"),
    ],
)
def test_errors_name_the_argument_and_the_value(options, error, message):
    arguments = {"cam": torch.zeros(1, 3, 4, 4), "target": torch.zeros(1, 8, 8, dtype=torch.uint8)} | options
    with pytest.raises(error, match=message):
        CF.cam_counts(arguments.pop("cam"), arguments.pop("target"), **arguments)
