"""``cross_entropy`` against its formula in float64 with ``F.interpolate`` and ``F.cross_entropy``."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast._ops import backends
from tests.conftest import DEVICE, on_a_cpu
from tests.support.cases import FINITE, FLOATS, LABELS, LAYOUTS, RATIOS, noise
from tests.support.interpreter import chunks_of_classes
from tests.support.losses import by_formula, check

pytestmark = pytest.mark.usefixtures("backend")

REDUCTIONS = ("mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean")
C = 7
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.0, 0.7, 1.4, 2.5])


@pytest.mark.sampled
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_value_and_gradient(reduction, ratio, smoothing, corners):
    case = noise(C, 2, *RATIOS[ratio])
    case.target[0, 0, 0] = 1  # a label whose weight is not 0; PyTorch's mean would be NaN
    grad = torch.randn(case.target.shape) if reduction == "none" else torch.tensor(0.7)
    check(*case, WEIGHT, reduction=reduction, smoothing=smoothing, corners=corners, grad=grad)


@pytest.mark.slow_in_interpreter
@pytest.mark.sampled
@pytest.mark.parametrize("content", [name for name in FINITE if name not in ("all_ignored", "empty")])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer", "down"])
def test_layouts_and_contents(layout, content, ratio):
    case = FINITE[content](C, 3, *RATIOS[ratio])
    plain = check(*case, WEIGHT)
    other = check(LAYOUTS[layout](case.logits), case.target, WEIGHT)
    torch.testing.assert_close(other, plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("transform", [lambda y: y.mT.contiguous().mT, lambda y: y.repeat_interleave(2, 2)[..., ::2]])
def test_strided_target(transform):
    case = noise(C, 2, (6, 9), (24, 36))
    target = transform(case.target.to(torch.uint8))
    assert not target.is_contiguous()
    check(case.logits, target, WEIGHT, reduction="none", grad=torch.randn(target.shape))


@pytest.mark.sampled
@pytest.mark.parametrize("ratio", ["same", "non-integer"])
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("dtype", FLOATS)
def test_dtypes(dtype, labels, ratio):
    case = noise(C, 2, *RATIOS[ratio])
    check(case.logits.to(dtype), case.target.to(labels), WEIGHT, smoothing=0.05)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("size", [(0, 0), (4, 0)])
def test_labels_without_pixels(size, reduction):
    logits = torch.randn(2, C, 4, 4, requires_grad=True)
    loss = CF.cross_entropy(logits, torch.zeros(2, *size, dtype=torch.int64), reduction=reduction)
    assert loss.isnan() if reduction == "mean" else not loss.any()
    loss.backward(torch.ones_like(loss))
    assert not logits.grad.any()


VANISHING = {  # of class 3, the only label
    "zero": 0.0,
    "least": 1e-45,  # its inverse overflows
    "denormal": 1e-42,
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("ratio", ["same", "x4", "down"])
@pytest.mark.parametrize("value", VANISHING.values(), ids=VANISHING)
@pytest.mark.sampled
def test_a_mean_over_vanishing_weights_is_0(value, ratio, smoothing, dtype):
    """And so is its gradient, where PyTorch divides 0 by 0. Ignored pixels make no difference."""
    case = noise(C, 2, *RATIOS[ratio])
    target = torch.full_like(case.target, 3)
    target[0, 0] = 255
    weight = WEIGHT.clone()
    weight[3] = value if dtype != torch.float64 else 0.0  # float64 holds the others
    leaf = case.logits.to(dtype, copy=True).requires_grad_()
    loss = CF.cross_entropy(leaf, target, weight, ignore_index=255, label_smoothing=smoothing)
    loss.backward()
    assert loss == 0
    assert (leaf.grad == 0).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_vanish_in_their_own_dtype(dtype):
    """A weight of 0 in any dtype, and one that float32 rounds to 0."""
    target = torch.full((2, 5, 6), 3)
    for weight in (WEIGHT.to(dtype), WEIGHT.double().where(WEIGHT > 0, 1e-300)):
        assert CF.cross_entropy(torch.randn(2, C, 5, 6), target, weight) == 0


@pytest.mark.parametrize("value", [1e-30, 1e-37])
def test_small_weights_are_divided_by(value):
    """A mean over one class does not depend on its weight."""
    target = torch.full((2, 5, 6), 3)
    weight = WEIGHT.where(WEIGHT > 0, value)
    logits = torch.randn(2, C, 5, 6)
    plain = CF.cross_entropy(logits, target)
    torch.testing.assert_close(CF.cross_entropy(logits, target, weight), plain)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_that_are_all_0(reduction):
    case = noise(C, 2, (5, 6), (20, 24))
    leaf = case.logits.requires_grad_()
    loss = CF.cross_entropy(leaf, case.target, torch.zeros(C), ignore_index=255, reduction=reduction)
    loss.sum().backward()
    assert (loss == 0).all()
    assert (leaf.grad == 0).all()


@on_a_cpu
def test_weight_that_float32_cannot_hold():
    weight = torch.tensor([1e39, *[1.0] * (C - 1)], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"weight must be finite.*weight\[0\] is inf"):
        CF.cross_entropy(torch.randn(1, C, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64), weight)


@pytest.mark.slow_in_interpreter
@pytest.mark.sampled
@pytest.mark.parametrize("classes", [1, 2, 3, 16, 17, 150, 257])
def test_number_of_classes(classes, backend):
    case = noise(classes, 2, (5, 7), (20, 21))
    target = case.target.where(case.target != 255, -1).to(torch.int16)
    # the interpreter takes as long for a large chunk as for a small one
    interpreted = backend == "triton" and DEVICE != "cuda" and classes > 100
    with chunks_of_classes(64) if interpreted else contextlib.nullcontext():
        check(case.logits, target, torch.rand(classes) + 0.1, ignore_index=-1)
    if classes == 1:
        assert CF.cross_entropy(case.logits, target, ignore_index=-1) == 0


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("ignore_index", [2, 0, 255, 100])
def test_ignore_index_inside_and_outside_the_classes(ignore_index, labels):
    target = torch.randint(0, C, (2, 12, 10))
    target[:, ::3] = ignore_index
    check(torch.randn(2, C, 6, 5), target.to(labels), WEIGHT, ignore_index=ignore_index)


@pytest.mark.parametrize(("label", "ignore_index"), [(156, -100), (255, -1), (44, 300)])
def test_ignore_index_does_not_wrap_around_in_uint8(label, ignore_index):
    """156 = -100 modulo 256, for example, but with 256 classes it is a valid label."""
    target = torch.full((1, 4, 4), label, dtype=torch.uint8)
    loss, grad = check(torch.randn(1, 256, 4, 4), target, ignore_index=ignore_index)
    assert loss > 0
    assert grad.abs().sum() > 0


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(5,), (6, 5), (2, 5, 8), (2, 5, 3, 4), (2, 5, 3, 4, 2), (1, 5, 2, 3, 2, 2)])
def test_shapes_of_equal_size(shape, reduction):
    target = torch.randint(0, 5, (*shape[:1], *shape[2:]) if len(shape) > 1 else ())
    logits, weight = torch.randn(shape), torch.rand(5)
    grad = torch.randn(target.shape) if reduction == "none" else None
    if len(shape) > 1:
        check(logits, target, weight, reduction=reduction, grad=grad)
    else:  # F.cross_entropy lacks some reductions; all are the loss of the one pixel
        loss = CF.cross_entropy(logits, target, weight, reduction=reduction)
        unweighted = reduction == "mean"
        expected = F.cross_entropy(logits, target, None if unweighted else weight, reduction="sum")
        torch.testing.assert_close(loss, expected)


@pytest.mark.slow_in_interpreter
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ratio", ["same", "x4"])
def test_all_ignored(reduction, ratio):
    case = FINITE["all_ignored"](C, 2, *RATIOS[ratio])
    leaf = case.logits.requires_grad_()
    loss = CF.cross_entropy(leaf, case.target, WEIGHT, ignore_index=255, reduction=reduction, label_smoothing=0.1)
    loss.sum().backward()
    assert loss.isnan() if reduction == "mean" else (loss == 0).all()  # NaN as in PyTorch
    assert leaf.grad.equal(torch.zeros_like(leaf))


@pytest.mark.parametrize("shape", [(0, C, 4, 4), (2, C, 0, 0), (0, C)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_empty(reduction, shape):
    leaf = torch.randn(shape, requires_grad=True)
    target = torch.zeros(shape[:1] + tuple(2 * s for s in shape[2:]), dtype=torch.uint8)
    loss = CF.cross_entropy(leaf, target, WEIGHT, reduction=reduction)
    loss.sum().backward()
    assert loss.shape == (target.shape if reduction == "none" else ())
    assert loss.isnan() if reduction == "mean" else (loss == 0).all()
    assert leaf.grad.shape == shape


def test_expanded_gradient(backend):
    """``loss.sum().backward()`` passes a gradient with stride 0."""
    case = noise(C, 2, (6, 9), (24, 36))
    grads = []
    for grad in (torch.tensor(0.3).expand(case.target.shape), torch.full(case.target.shape, 0.3)):
        leaf = case.logits.clone().requires_grad_()
        CF.cross_entropy(leaf, case.target, WEIGHT, ignore_index=255, reduction="none").backward(grad)
        grads.append(leaf.grad)
    exact = backend != "reference" or DEVICE == "cpu"  # on a GPU, PyTorch sums in no fixed order
    torch.testing.assert_close(grads[0], grads[1], rtol=0 if exact else 1e-5, atol=0 if exact else 1e-7)


@pytest.mark.slow_in_interpreter
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [(6, 9), (24, 36)])
def test_the_callers_tensors_are_not_changed(size, dtype):
    case = noise(C, 2, (6, 9), size)
    tensors = (case.logits.to(dtype), case.target, WEIGHT.clone())
    copies = [t.clone() for t in tensors]
    leaf = tensors[0].requires_grad_()
    CF.cross_entropy(leaf * 1, *tensors[1:], ignore_index=255, label_smoothing=0.1).backward()
    CF.cross_entropy(leaf, *tensors[1:], ignore_index=255, label_smoothing=0.1).backward()
    assert all(t.equal(c) for t, c in zip(tensors, copies, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shift", [0.0, 1e4, -1e4])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_large_logits(scale, shift, reduction):
    """A constant added to all logits of a pixel does not change the softmax.

    PyTorch loses no digits then, and neither may the operator.
    """
    case = noise(C, 2, (9, 13), (9, 13))
    check(scale * case.logits + shift, case.target, WEIGHT, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_large_resized_logits(reduction):
    case = noise(C, 2, (9, 13), (18, 26))
    check(1e4 * case.logits, case.target, WEIGHT, reduction=reduction)


def test_confident_pixels():
    """With the logits of a trained network, the loss of a correct pixel is tiny and must still be accurate."""
    target = torch.randint(0, C, (1, 32, 32))
    logits = torch.randn(1, C, 32, 32) + 12 * F.one_hot(target, C).permute(0, 3, 1, 2) + 40
    check(logits, target, reduction="none")


def test_minus_infinity_at_another_class():
    """A masked-out class has probability 0 and no other effect."""
    case = noise(C, 2, (8, 8), (8, 8))
    logits, target = case.logits.clone(), case.target.where(case.target != 4, 5)
    logits[:, 4] = -torch.inf
    loss, grad = check(logits, target, WEIGHT)
    assert loss.isfinite()
    assert (grad[:, 4] == 0).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_not_a_number_at_an_ignored_pixel(value):
    case = noise(C, 2, (8, 8), (8, 8))
    case.target[:, 3, 4] = 255
    clean = check(*case, WEIGHT, smoothing=0.1)
    dirty = case.logits.clone()
    dirty[:, :, 3, 4] = value
    leaf = dirty.requires_grad_()
    loss = CF.cross_entropy(leaf, case.target, WEIGHT, ignore_index=255, label_smoothing=0.1)
    loss.backward()
    assert loss == clean[0]
    assert leaf.grad.equal(clean[1])


@pytest.mark.parametrize("size", [(6, 9), (24, 36)])
def test_class_probabilities_are_refused(size):
    probabilities = torch.rand(2, C, *size).softmax(1)
    with pytest.raises(TypeError, match=r"target.*float32.*F\.cross_entropy"):
        CF.cross_entropy(torch.randn(2, C, 6, 9), probabilities)


def logits(*shape, dtype=torch.float32):
    return torch.zeros(shape or (2, C, 4, 4), dtype=dtype)


def labels(*shape, dtype=torch.int64):
    return torch.zeros(shape or (2, 8, 8), dtype=dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((logits(), labels(3, 8, 8)), {}, ValueError, r"target.*N = 2.*\(3, 8, 8\)"),
        ((logits(), labels(2, 1, 8, 8)), {}, ValueError, r"target.*\(2, 1, 8, 8\).*squeeze\(1\)"),
        ((logits(), labels(2, 8)), {}, ValueError, r"target.*\(2, 8\)"),
        ((logits(2, C, 5), labels(2, 6)), {}, ValueError, r"target.*\(2, 5\).*\(2, 6\)"),
        ((logits(2, 0, 4, 4), labels()), {}, ValueError, r"input \(2, 0, 4, 4\) has no classes"),
        ((logits(2, C, 0, 4), labels()), {}, ValueError, r"input \(2, 7, 0, 4\) is empty"),
        ((torch.tensor(1.0), torch.tensor(0)), {}, ValueError, "input.*scalar"),
        ((logits(dtype=torch.int32), labels()), {}, TypeError, "input.*int32"),
        ((logits(), labels(dtype=torch.bool)), {}, TypeError, "target.*bool"),
        ((logits(), labels(dtype=torch.int8)), {}, TypeError, "target.*int8"),
        ((logits(), labels(), torch.ones(5)), {}, ValueError, r"weight.*7 classes.*\(5,\)"),
        ((logits(), labels(), torch.ones(C, 1)), {}, ValueError, r"weight.*7 classes.*\(7, 1\)"),
        ((logits(), labels(), torch.ones(C, dtype=torch.int64)), {}, TypeError, "weight.*int64"),
        (
            (logits(), labels(), torch.ones(C, requires_grad=True)),
            {},
            ValueError,
            r"weight requires a gradient.*detach",
        ),
        ((logits(), labels()), {"reduction": "average"}, ValueError, "reduction.*mean.*'average'"),
        ((logits(), labels()), {"label_smoothing": 1.5}, ValueError, "label_smoothing.*1.5"),
        ((logits(), labels()), {"label_smoothing": float("nan")}, ValueError, "label_smoothing.*nan"),
        ((logits(), labels().to("meta")), {}, ValueError, f"target is on meta.*{DEVICE}"),
        ((logits(), labels(), torch.ones(C, device="meta")), {}, ValueError, f"weight is on meta.*{DEVICE}"),
    ],
)
def test_errors_name_the_argument_and_the_value(arguments, options, error, message):
    with pytest.raises(error, match=message):
        CF.cross_entropy(*arguments, **options)


def test_autocast():
    """Under autocast the logits are bfloat16, the loss is float32, and gradients reach the float32 weights."""
    layer = torch.nn.Conv2d(4, C, 1)
    case = noise(C, 2, (6, 9), (24, 36))
    with torch.autocast(DEVICE, torch.bfloat16):
        out = layer(torch.randn(2, 4, 6, 9))
        loss = CF.cross_entropy(out, case.target, WEIGHT, ignore_index=255)
    assert (out.dtype, loss.dtype) == (torch.bfloat16, torch.float32)
    loss.backward()
    assert layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, by_formula(torch.float32, out, case.target, WEIGHT), rtol=1e-5, atol=0)


@pytest.mark.slow_in_interpreter
def test_float16_loss_does_not_overflow():
    out = torch.zeros(1, 2, 64, 64, dtype=torch.float16)
    loss = CF.cross_entropy(out, torch.zeros(1, 512, 512, dtype=torch.uint8), reduction="sum")
    torch.testing.assert_close(loss, torch.tensor(512 * 512 * 0.6931471805599453))


@pytest.mark.parametrize("reduction", [r for r in REDUCTIONS if r != "none"])
def test_a_common_factor_of_the_weights_cancels_only_with_mean(reduction):
    case = noise(C, 2, (6, 9), (24, 36))
    one, ten = (CF.cross_entropy(*case, f * WEIGHT, ignore_index=255, reduction=reduction) for f in (1.0, 10.0))
    torch.testing.assert_close(ten, one if reduction == "mean" else 10 * one)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_module_equals_function(reduction):
    case = noise(C, 2, (6, 9), (24, 36))
    loss = cf.CrossEntropyLoss(WEIGHT, 255, reduction, 0.1, True)(*case)
    options = {"ignore_index": 255, "reduction": reduction, "label_smoothing": 0.1, "align_corners": True}
    assert loss.equal(CF.cross_entropy(*case, WEIGHT, **options))


def test_module_uses_the_live_weight():
    adaptive = cf.AdaptiveClassWeights(C)
    loss_fn = cf.CrossEntropyLoss(adaptive, ignore_index=255)
    case = noise(C, 2, (6, 9), (24, 36))
    assert loss_fn(*case).equal(CF.cross_entropy(*case, torch.ones(C), ignore_index=255))
    adaptive.weight.copy_(WEIGHT)
    assert loss_fn(*case).equal(CF.cross_entropy(*case, WEIGHT, ignore_index=255))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "average"}, "reduction.*'average'"),
        ({"label_smoothing": -0.1}, "label_smoothing.*-0.1"),
        ({"weight": torch.tensor([1.0, -2.0])}, r"weight\[1\] is -2.0"),
        ({"weight": [1.0, 2.0]}, r"weight.*\[1.0, 2.0\]"),
        ({"weight": torch.ones(2, 2)}, "weight"),
    ],
)
def test_module_errors(options, message):
    with pytest.raises(ValueError, match=message):
        cf.CrossEntropyLoss(**options)


@pytest.mark.slow_in_interpreter
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 4),
    classes=st.integers(1, 20),
    corners=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_size(sizes, classes, corners, seed):
    torch.manual_seed(seed)
    if backends.runs_triton(torch.device(DEVICE)):
        # fewer and smaller sizes: the interpreter is slow, and on a GPU each size takes a compilation
        if seed % (4 if DEVICE == "cpu" else 9):
            return
        sizes, classes = [1 + size % 12 for size in sizes], 1 + classes % 6
    case = noise(classes, 1, sizes[:2], sizes[2:])
    check(*case, torch.rand(classes) + 0.1, reduction="valid_mean", corners=corners)
