"""The operators under ``torch.library.opcheck``, ``gradcheck`` and ``torch.compile``."""

import pytest
import torch

import cawa_fast as cf
import cawa_fast.functional as CF
from tests.support.cases import LAYOUTS, noise

C = 5
OFFSET = torch.linspace(-2, 2, C)
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7, 1.4])
every_backend = pytest.mark.usefixtures("backend")
REDUCTIONS = ("mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean")
SIZES = {"same": (6, 9), "resized": (13, 36)}
OPS = torch.ops.cawa_fast


def inputs(size="resized", layout="contiguous", dtype=torch.float32):
    case = noise(C, 2, (6, 9), SIZES[size])
    return LAYOUTS[layout](case.logits.to(dtype)), case.target.to(torch.uint8)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def transposed(target):
    return target.mT.contiguous().mT


@pytest.mark.sampled
@every_backend
@pytest.mark.parametrize("weight", [WEIGHT, None], ids=["weighted", "plain"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("size", SIZES)
def test_opcheck_cross_entropy(size, reduction, weight):
    logits, target = inputs(size)
    arguments = (logits.requires_grad_(), target, weight, OFFSET, 255, reduction, 0.1, 0.0, False)
    torch.library.opcheck(OPS.cross_entropy, (*arguments, True))
    torch.library.opcheck(OPS.cross_entropy, (*arguments, False))


CHEAP = ("test_schema", "test_faketensor")  # the checks that layouts and dtypes can break


@pytest.mark.sampled
@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "none", "class_mean"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_shapes_dtypes_and_strides_without_computing(size, layout, reduction, dtype):
    logits, target = inputs(size, layout, dtype)
    for labels in (target, transposed(target)):
        arguments = (logits, labels, WEIGHT, OFFSET, 255, reduction, 0.1, 0.0, False, True)
        torch.library.opcheck(OPS.cross_entropy, arguments, test_utils=CHEAP)
        loss, scale, saved = OPS.cross_entropy(*arguments)
        backward = (torch.ones_like(loss), logits, labels, WEIGHT, OFFSET, scale, saved, 255, 0.1, 0.0, False)
        torch.library.opcheck(OPS.cross_entropy_backward, backward, test_utils=CHEAP)


@pytest.mark.slow_in_interpreter
@every_backend
@pytest.mark.parametrize("size", SIZES)
def test_opcheck_counting(size):
    logits, target = inputs(size)
    torch.library.opcheck(OPS.confusion_matrix, (logits, target, C, 255, False))
    torch.library.opcheck(OPS.confusion_matrix, (target.clamp_max(C - 1), target, C, 255, False))
    torch.library.opcheck(OPS.cam_counts, (logits.relu(), target, 0.5, "max", "present", 255, False))


@pytest.mark.slow_in_interpreter
@pytest.mark.sampled
@every_backend
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_opcheck_counting_in_any_layout(size, layout):
    logits, target = inputs(size, layout)
    torch.library.opcheck(OPS.confusion_matrix, (logits, transposed(target), C, 255, False), test_utils=CHEAP)
    for normalize in ("max", "minmax", "gradcam", "none"):
        arguments = (logits.relu(), transposed(target), 0.5, normalize, "present", 255, False)
        torch.library.opcheck(OPS.cam_counts, arguments, test_utils=CHEAP)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("size", [(3, 4), (5, 9), (2, 2)])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, size, smoothing):
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, *size))
    target[0, 0, 0] = -100
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    for corners in (False, True):
        options = {"reduction": reduction, "label_smoothing": smoothing, "align_corners": corners}
        assert torch.autograd.gradcheck(lambda z, o=options: CF.cross_entropy(z, target, weight, **o), logits)


def test_double_backward_raises_and_says_what_to_use():
    logits, target = inputs()
    leaf = logits.requires_grad_()
    loss = CF.cross_entropy(leaf, target, ignore_index=255)
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*functional\.cross_entropy"):
        grad.square().sum().backward()


def test_no_gradient_for_the_other_arguments():
    """Only ``input`` has a gradient, and of the operator's outputs only the loss is part of the graph."""
    logits, target = inputs()
    arguments = (logits.requires_grad_(), target, WEIGHT, None, 255, "mean", 0.0, 0.0, False, True)
    loss, scale, grad = OPS.cross_entropy(*arguments)
    assert loss.requires_grad
    assert not scale.requires_grad
    assert not grad.requires_grad


def training_step(logits, target, weight):
    """A training step with operations on the logits before the loss and on the loss after it."""
    loss = CF.cross_entropy(2 * logits, target, weight, ignore_index=255, label_smoothing=0.1)
    return loss + logits.square().mean()


def check_compiled(backend, layout="contiguous", size="resized", dynamic=None):
    compiled = torch.compile(training_step, backend=backend, fullgraph=True, dynamic=dynamic)
    logits, target = inputs(size, layout)
    results = []
    for step in (training_step, compiled):
        leaf = logits.detach().requires_grad_()
        loss = step(leaf, target, WEIGHT)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_compile_cross_entropy(size, layout):
    check_compiled("aot_eager", layout, size)


def test_compile_with_dynamic_shapes():
    check_compiled("aot_eager", dynamic=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # raised by inductor
@pytest.mark.slow
def test_compile_with_inductor():
    """Inductor checks the strides of the fake implementation's results. With channels_last they are not the default."""
    check_compiled("inductor", "channels_last", "same")


def test_compile_counting():
    logits, target = inputs()

    def validation_step(logits, target):
        matrix = CF.confusion_matrix(logits, target, ignore_index=255)
        return matrix + 1, CF.cam_counts(logits.relu(), target, ignore_index=255)

    compiled = torch.compile(validation_step, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target), validation_step(logits, target))


def test_compile_modules():
    logits, target = inputs()
    weights = cf.AdaptiveClassWeights(C, ignore_index=255)
    for loss_fn in (cf.CrossEntropyLoss(weights, ignore_index=255), cf.FocalLoss(2.0, weights, ignore_index=255)):
        compiled = torch.compile(loss_fn, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(logits, target), loss_fn(logits, target))
        weights.weight.copy_(WEIGHT)  # in place, as step() does: the compiled loss sees it
        torch.testing.assert_close(compiled(logits, target), loss_fn(logits, target))
        weights.weight.fill_(1)


def test_compile_observe():
    logits, target = inputs()
    weights, plain = (cf.AdaptiveClassWeights(C, ignore_index=255) for _ in range(2))
    observe = torch.compile(weights.observe, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        observe(logits.relu(), target)
        plain.observe(logits.relu(), target)
    assert weights.step().equal(plain.step())


def test_bad_labels_raise_from_compiled_code():
    compiled = torch.compile(training_step, backend="aot_eager", fullgraph=True)
    logits, target = inputs()
    target[0, 0, 0] = 77
    with pytest.raises(ValueError, match="1 pixel has the value 77"):
        compiled(logits, target, WEIGHT)
