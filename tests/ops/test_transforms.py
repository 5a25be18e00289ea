"""Forward-mode derivatives and ``torch.func``: right, or an error that says what to do; never a silent 0."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

import cawa_fast as cf
import cawa_fast.functional as CF
from tests.conftest import DEVICE
from tests.support.cases import FLOATS, RATIOS, noise
from tests.support.losses import by_formula

if DEVICE != "cpu":
    pytest.skip("plain PyTorch computes these; no kernel does", allow_module_level=True)

pytestmark = [
    pytest.mark.usefixtures("backend"),
    # by PyTorch, of its own rules for forward mode
    pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning"),
]

REDUCTIONS = ("mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean")
C = 5
WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.0, 1.4])


def dual_number(function, primal, tangent):
    """Value and derivative with dual numbers, in place of ``torch.func.jvp``."""
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(primal, tangent)))


def pushed_forward(function, primal, tangent):
    return torch.func.jvp(function, (primal,), (tangent,))


def inner_product(function, primal, tangent):
    """The derivative from the gradient: of a vector, from the gradients of its parts."""
    leaf = primal.detach().requires_grad_()
    value = function(leaf)
    flat = [torch.autograd.grad(part, leaf, retain_graph=True)[0] for part in value.flatten()]
    return value.detach(), torch.stack([(grad * tangent).sum() for grad in flat]).view(value.shape)


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("ratio", ["same", "x4", "non-integer", "down"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.sampled
def test_directional_derivative(reduction, ratio, corners):
    """Against the formula in float64, whose operators are PyTorch's own."""
    case = noise(C, 2, *RATIOS[ratio])
    case.target[0, 0, 0] = 1
    tangent = torch.randn_like(case.logits)
    options = {"ignore_index": 255, "reduction": reduction}

    def ours(z):
        return CF.cross_entropy(z, case.target, WEIGHT, label_smoothing=0.1, align_corners=corners, **options)

    def exact(z):
        return by_formula(torch.float64, z, case.target, WEIGHT, smoothing=0.1, corners=corners, **options)

    if reduction == "class_mean":  # the formula of the tests leaves the weight of absent classes out
        expected = inner_product(ours, case.logits.double(), tangent.double())
    else:
        expected = torch.func.jvp(exact, (case.logits.double(),), (tangent.double(),))
    for derivative in (pushed_forward, dual_number):
        actual = derivative(ours, case.logits, tangent)
        torch.testing.assert_close(actual[0].double(), expected[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(actual[1].double(), expected[1], rtol=1e-4, atol=1e-5)


MODULES = {
    "cross-entropy": lambda: cf.CrossEntropyLoss(WEIGHT, 255),
    "smoothed": lambda: cf.CrossEntropyLoss(cf.AdaptiveClassWeights(C), 255, label_smoothing=0.1),
    "focal": lambda: cf.FocalLoss(1.5, WEIGHT, 255),
    "focal, per pixel": lambda: cf.FocalLoss(2.0, None, 255, "none"),
    "logit-adjusted": lambda: cf.LogitAdjustedLoss([100, 10, 5, 0, 1], 1.5, ignore_index=255),
    "recall": lambda: cf.RecallLoss(255),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [(5, 6), (11, 13)])
@pytest.mark.parametrize("module", MODULES)
@pytest.mark.slow_in_interpreter
def test_modules(module, size, dtype):
    """The inner product of gradient and direction; the gradient comes from the kernels."""
    case = noise(C, 1, (5, 6), size)
    case.target[0, 0, 0] = 1
    primal, tangent = case.logits.to(dtype), torch.randn_like(case.logits).to(dtype)
    loss_fn = MODULES[module]()

    def function(z):
        return loss_fn(z, case.target)

    for derivative in (pushed_forward, dual_number):
        value, actual = derivative(function, primal, tangent)
        expected_value, expected = inner_product(function, primal.double(), tangent.double())
        tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 3e-2
        torch.testing.assert_close(value.double(), expected_value.double(), rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def loss_of(case):
    return lambda z: CF.cross_entropy(z, case.target, WEIGHT, ignore_index=255)


def exact_loss_of(case):
    return lambda z: by_formula(z.dtype, z, case.target, WEIGHT.to(z.dtype))


@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "hessian", "grad"])
@pytest.mark.parametrize("size", [(3, 4), (6, 8)])
def test_other_transforms(size, transform):
    case = noise(C, 1, (3, 4), size)
    apply = getattr(torch.func, transform)
    actual = apply(loss_of(case))(case.logits)
    expected = apply(exact_loss_of(case))(case.logits.double())
    assert expected.any()
    torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")  # by PyTorch
def test_linearize(backend):
    if backend == "triton":
        pytest.skip("the interpreter cannot run inside the tracer of linearize")
    case = noise(C, 1, (3, 4), (6, 8))
    tangent = torch.randn_like(case.logits)
    expected = torch.func.jvp(exact_loss_of(case), (case.logits,), (tangent,))[1]
    _, derivative = torch.func.linearize(loss_of(case), case.logits)
    torch.testing.assert_close(derivative(tangent), expected, rtol=1e-4, atol=1e-6)


def test_vmap_over_logits():
    case = noise(C, 1, (3, 4), (6, 8))
    batch = torch.randn(3, *case.logits.shape)
    torch.testing.assert_close(
        torch.func.vmap(loss_of(case))(batch), torch.stack([loss_of(case)(one) for one in batch]), rtol=1e-5, atol=1e-6
    )


def test_forward_over_reverse():
    case = noise(C, 1, (3, 4), (6, 8))
    tangent = torch.randn_like(case.logits)
    expected = torch.func.jvp(torch.func.grad(exact_loss_of(case)), (case.logits,), (tangent,))
    actual = torch.func.jvp(torch.func.grad(loss_of(case)), (case.logits,), (tangent,))
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-6)


def test_compiled(backend):
    """A tangent that is there before the compiled function is called, and one that it makes itself."""
    if backend == "triton":
        pytest.skip("the interpreter cannot run inside the compiler's tracer")
    case = noise(C, 1, (3, 4), (6, 8))
    tangent = torch.randn_like(case.logits)
    expected = torch.func.jvp(exact_loss_of(case), (case.logits,), (tangent,))[1]
    compiled = torch.compile(loss_of(case), backend="aot_eager")
    torch.testing.assert_close(compiled(case.logits), loss_of(case)(case.logits))
    torch.testing.assert_close(dual_number(compiled, case.logits, tangent).tangent, expected, rtol=1e-4, atol=1e-6)
    inside = torch.compile(lambda z: torch.func.jvp(loss_of(case), (z,), (tangent,))[1], backend="aot_eager")
    torch.testing.assert_close(inside(case.logits), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck_in_forward_mode(reduction):
    logits = torch.randn(2, 3, 3, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 5, 9))
    options = {"reduction": reduction, "label_smoothing": 0.1}
    assert torch.autograd.gradcheck(
        lambda z: CF.cross_entropy(z, target, **options), logits, check_forward_ad=True, check_backward_ad=False
    )


def test_a_tangent_elsewhere_changes_nothing():
    """Logits without a tangent inside a dual level use the kernels, and give the same bits as outside."""
    case = noise(C, 2, (5, 6), (20, 24))
    expected = loss_of(case)(case.logits)
    with forward_ad.dual_level():
        forward_ad.make_dual(torch.ones(2), torch.ones(2))
        loss = loss_of(case)(case.logits)
    assert loss.equal(expected)
    assert forward_ad.unpack_dual(loss).tangent is None


@pytest.mark.parametrize(
    "loss", [cf.FocalLoss, cf.CrossEntropyLoss, CF.cross_entropy], ids=["focal", "module", "function"]
)
@pytest.mark.parametrize("derivative", [pushed_forward, dual_number])
def test_a_tangent_of_the_weight_is_refused(derivative, loss):
    case = noise(C, 2, (5, 6), (20, 24))

    def function(weight):
        if loss is CF.cross_entropy:
            return loss(case.logits, case.target, weight, ignore_index=255)
        module = loss(ignore_index=255)
        module.weight = weight
        return module(case.logits, case.target)

    direction = torch.rand(C)
    with pytest.raises(ValueError, match=r"weight has a tangent.*pass weight\.detach\(\)"):
        derivative(function, WEIGHT, direction)
    assert torch.func.jvp(lambda w: function(w.detach()), (WEIGHT,), (direction,))[1] == 0


def test_a_mapped_target_is_refused():
    case = noise(C, 2, (5, 6), (20, 24))
    for function in (CF.cross_entropy, torch.func.grad(CF.cross_entropy)):
        with pytest.raises(ValueError, match=r'target is mapped by torch\.func\.vmap.*reduction="none"'):
            torch.func.vmap(lambda z, y, f=function: f(z[None], y[None], ignore_index=255))(case.logits, case.target)


def test_bad_labels_raise_in_forward_mode_too():
    logits = torch.randn(1, C, 3, 4)
    with pytest.raises(ValueError, match="target: 48 pixels have the value 9"):
        torch.func.jvp(lambda z: CF.cross_entropy(z, torch.full((1, 6, 8), 9)), (logits,), (logits,))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_backward_pass_still_raises(reduction):
    case = noise(C, 1, (3, 4), (6, 8))
    leaf = case.logits.requires_grad_()
    loss = CF.cross_entropy(leaf, case.target, ignore_index=255, reduction=reduction).sum()
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("function", ["confusion_matrix", "cam_counts"])
def test_counts_have_no_derivative(function):
    case = noise(C, 2, (5, 6), (20, 24))

    def count(z):
        counts = getattr(CF, function)(z.relu(), case.target, ignore_index=255)
        return counts if isinstance(counts, torch.Tensor) else counts.tp

    expected = count(case.logits)
    value, tangent = dual_number(count, case.logits, torch.ones_like(case.logits))
    assert value.equal(expected)
    assert tangent is None
    assert not torch.func.jvp(lambda z: count(z).float(), (case.logits,), (case.logits,))[1].any()


def test_the_example_of_pytorch():
    """Equal to the derivative of ``F.cross_entropy``, which was 0 here."""
    logits, direction = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    target = torch.randint(0, 3, (2, 4, 5))
    ours = torch.func.jvp(lambda z: CF.cross_entropy(z, target), (logits,), (direction,))
    theirs = torch.func.jvp(lambda z: F.cross_entropy(z, target), (logits,), (direction,))
    torch.testing.assert_close(ours, theirs)
    assert abs(ours[1]) > 1e-3
