"""Arguments of another type: the message names the argument, what it got, what it must be, and the way out."""

import collections
import types
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import estimation, sampling, weighting

C = 3
LOGITS, TARGET = torch.randn(2, C, 4, 5), torch.randint(0, C, (2, 8, 10))
WEIGHT = torch.ones(C)
HUGE = 2**63


def losses(**options):
    """Each loss module, with ``options`` for its constructor."""
    return {
        "CrossEntropyLoss": lambda: cf.CrossEntropyLoss(**options),
        "FocalLoss": lambda: cf.FocalLoss(**options),
        "LogitAdjustedLoss": lambda: cf.LogitAdjustedLoss([1, 2, 3], **options),
        "RecallLoss": lambda: cf.RecallLoss(**options),
    }


def operators(**options):
    """Each operator, with ``options``."""
    return {
        "cross_entropy": lambda: CF.cross_entropy(LOGITS, TARGET, **options),
        "confusion_matrix": lambda: CF.confusion_matrix(LOGITS, TARGET, **options),
        "cam_counts": lambda: CF.cam_counts(LOGITS.relu(), TARGET, **options),
        "AdaptiveClassWeights": lambda: cf.AdaptiveClassWeights(C, **options),
    }


def nested(tensor):
    return torch.nested.nested_tensor([tensor[0], tensor[1, :, :2]], layout=torch.jagged)


OTHERS = {  # in place of logits: the value, what the message says of it, and the way out
    "numpy": (
        LOGITS.numpy(),
        r"a NumPy array of float32, shape \(2, 3, 4, 5\); convert it with torch\.from_numpy\(X\)",
    ),
    "list": (LOGITS.tolist(), r"the list \[.*\]; convert it with torch\.tensor\(X\)"),
    "list of tensors": ([LOGITS, LOGITS], r"the list \[.*; pass one of its tensors, or torch\.stack\(X\)"),
    "float": (1.5, r"the float 1\.5; convert it with torch\.tensor\(X\)"),
    "None": (None, "None; pass a tensor"),
    "str": ("logits", "the str 'logits'; pass a tensor"),
    "True": (True, r"True; convert it with torch\.tensor\(X\)"),
    "dict": ({"out": LOGITS}, r"an object of type dict; pass one of its values, such as X\['out'\]"),
    "ordered dict": (collections.OrderedDict(aux=LOGITS), r"an object of type OrderedDict; .*X\['aux'\]"),
    "output": (types.SimpleNamespace(logits=LOGITS), r"an object of type SimpleNamespace; pass X\.logits"),
    "sparse": (LOGITS.to_sparse(), r"a sparse_coo tensor; pass X\.to_dense\(\)"),
    "int": (LOGITS.int(), r"int32; convert it with \.float\(\)"),
    "bool": (LOGITS > 0, r"bool; convert it with \.float\(\)"),
    "complex": (LOGITS + 1j, r"complex64; pass X\.real or X\.abs\(\)"),
    "float8": (LOGITS.to(torch.float8_e4m3fn), r"float8_e4m3fn; convert it with \.float\(\)"),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("name", "argument", "call"),
    [
        ("cross_entropy", "input", lambda x: CF.cross_entropy(x, TARGET)),
        ("cam_counts", "cam", lambda x: CF.cam_counts(x, TARGET)),
        ("cross_entropy", "input", lambda x: cf.CrossEntropyLoss()(x, TARGET)),
        ("focal_loss", "input", lambda x: cf.FocalLoss()(x, TARGET)),
        ("LogitAdjustedLoss", "input", lambda x: cf.LogitAdjustedLoss([1, 2, 3])(x, TARGET)),
        ("RecallLoss", "input", lambda x: cf.RecallLoss()(x, TARGET)),
    ],
    ids=["cross_entropy", "cam_counts", "CrossEntropyLoss", "FocalLoss", "LogitAdjustedLoss", "RecallLoss"],
)
def test_logits(name, argument, call, other):
    value, message = OTHERS[other]
    with pytest.raises(TypeError, match=f"(?s)^{name}: {argument} must be .*, got {message.replace('X', argument)}$"):
        call(value)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_nested_and_a_quantized_tensor():
    with pytest.raises(
        TypeError, match=r"input must be a tensor of float32.*a nested tensor; pad it with torch\.nested"
    ):
        CF.cross_entropy(nested(LOGITS), TARGET)
    with (
        pytest.warns() if hasattr(torch, "_none") else pytest.raises(TypeError, match=r"quint8; pass input\.dequantize")
    ):
        CF.cross_entropy(
            torch._empty_affine_quantized((2, C, 4, 5), scale=0.1, zero_point=0, dtype=torch.quint8), TARGET
        )


@pytest.mark.parametrize(
    "call",
    [
        lambda y: CF.cross_entropy(LOGITS, y),
        lambda y: CF.confusion_matrix(LOGITS, y),
        lambda y: CF.cam_counts(LOGITS, y),
        lambda y: cf.RecallLoss()(LOGITS, y),
        lambda y: cf.AdaptiveClassWeights(C).observe(LOGITS, y),
        lambda y: cf.AdaptiveClassWeights(C).observe(LOGITS, y, mask=[True, False]),
        lambda y: cf.AdaptiveClassWeights(C, source="argmax").observe(LOGITS, y),
    ],
)
@pytest.mark.parametrize(
    ("target", "message"),
    [
        (TARGET.numpy(), r"a NumPy array of int64, shape \(2, 8, 10\); convert it with torch\.from_numpy\(target\)"),
        (TARGET.tolist(), r"the list .*; convert it with torch\.tensor\(target\)"),
        (None, "None; pass a tensor"),
        ("mask.png", "the str 'mask.png'; pass a tensor"),
        (TARGET.to_sparse(), r"a sparse_coo tensor; pass target\.to_dense\(\)"),
        (TARGET + 1j, r"complex64; pass target\.real or target\.abs\(\)"),
        (TARGET.bool(), "bool; convert it, best on load"),
    ],
    ids=["numpy", "list", "None", "str", "sparse", "complex", "bool"],
)
def test_target(call, target, message):
    with pytest.raises(TypeError, match=f"(?s)target must be .*uint8, int16, int32, int64, got {message}"):
        call(target)


@pytest.mark.parametrize("value", [LOGITS.numpy(), LOGITS.tolist(), None, 3])
def test_input_of_the_confusion_matrix(value):
    with pytest.raises(TypeError, match="confusion_matrix: input must be a tensor of logits or predictions, got"):
        CF.confusion_matrix(value, TARGET)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ([1.0, 2.0, 3.0], r"the list \[1\.0, 2\.0, 3\.0\]; convert it with torch\.tensor\(weight\)"),
        (np.ones(C), r"a NumPy array of float64, shape \(3,\); convert it with torch\.from_numpy\(weight\)"),
        (2.0, r"the float 2\.0; convert"),
        ("balanced", "the str 'balanced'; pass a tensor"),
        (cf.AdaptiveClassWeights(C), r"an object of type AdaptiveClassWeights; pass weight\.weight"),
        (WEIGHT.to_sparse(), r"a sparse_coo tensor; pass weight\.to_dense\(\)"),
    ],
    ids=["list", "numpy", "float", "str", "module", "sparse"],
)
def test_weight(weight, message):
    with pytest.raises(TypeError, match=rf"cross_entropy: weight must be None or a tensor \(C,\), got {message}"):
        CF.cross_entropy(LOGITS, TARGET, weight)


@pytest.mark.parametrize("loss", [cf.CrossEntropyLoss, cf.FocalLoss])
@pytest.mark.parametrize("weight", [WEIGHT.long(), WEIGHT.bool(), WEIGHT + 1j])
def test_dtype_of_a_modules_weight(loss, weight):
    with pytest.raises(TypeError, match=f"{loss.__name__}: weight must be one of float32.*got {str(weight.dtype)[6:]}"):
        loss(weight=weight)


WRONG_INDICES = [
    (None, TypeError, "None"),
    ([255], TypeError, r"the list \[255\]"),
    ((0, 255), TypeError, r"the tuple \(0, 255\)"),
    (255.0, TypeError, r"the float 255\.0"),
    (np.float32(255), TypeError, "an object of type float32"),
    ("255", TypeError, "the str '255'"),
    (True, TypeError, "True"),
    (np.bool_(True), TypeError, "an object of type bool"),
    (torch.tensor([1, 2]), TypeError, r"a tensor of int64, shape \(2,\)"),
    (torch.tensor(255.0), TypeError, r"a tensor of float32, shape \(\)"),
    (HUGE, ValueError, "9223372036854775808"),
    (-HUGE - 1, ValueError, "-9223372036854775809"),
]


@pytest.mark.parametrize(("value", "error", "message"), WRONG_INDICES, ids=lambda x: repr(x)[:30])
@pytest.mark.parametrize("where", [losses, operators])
def test_ignore_index(where, value, error, message):
    for name, call in where(ignore_index=value).items():
        with pytest.raises(error, match=f"{name}: ignore_index must .*, got {message}.*pass one label.*-100"):
            call()


@pytest.mark.parametrize("value", [1, np.int64(1), np.uint8(1), np.array(1), torch.tensor(1), HUGE - 1, -HUGE])
def test_integers_of_other_types_are_accepted(value):
    expected = CF.cross_entropy(LOGITS, TARGET, ignore_index=int(value))
    assert CF.cross_entropy(LOGITS, TARGET, ignore_index=value).equal(expected)
    module = cf.CrossEntropyLoss(ignore_index=value)
    assert type(module.ignore_index) is int
    assert module(LOGITS, TARGET).equal(expected)
    for call in [*losses(ignore_index=value).values(), *operators(ignore_index=value).values()]:
        call()


@pytest.mark.parametrize("value", ["0.1", None, [0.1], 0.1j, np.ones(2), torch.ones(1)], ids=repr)
@pytest.mark.parametrize(
    ("argument", "calls"),
    [
        ("label_smoothing", (lambda v: CF.cross_entropy(LOGITS, TARGET, label_smoothing=v),)),
        ("label_smoothing", (lambda v: cf.CrossEntropyLoss(label_smoothing=v),)),
        ("tau", (lambda v: CF.cam_counts(LOGITS, TARGET, tau=v), lambda v: cf.LogitAdjustedLoss([1, 2], tau=v))),
        ("gamma", (lambda v: cf.FocalLoss(gamma=v),)),
        ("beta", (lambda v: weighting.effective_number([1, 2], beta=v),)),
        ("c", (lambda v: weighting.enet([1, 2], c=v),)),
        *(
            (name, (lambda v, name=name: cf.AdaptiveClassWeights(C, **{name: v}),))
            for name in ("delta", "tau", "w_min", "w_max", "eps", "ratio_eps", "momentum", "max_error")
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_numbers(argument, calls, value):
    for call in calls:
        with pytest.raises(TypeError, match=rf"^\w+: {argument} must be a number, got .*; pass a float"):
            call(value)


@pytest.mark.parametrize(
    "value", [0, 0.5, np.float32(0.5), np.float64(0.5), np.int32(1), torch.tensor(0.5), Fraction(1, 2)]
)
def test_numbers_of_other_types_are_accepted(value):
    expected = CF.cross_entropy(LOGITS, TARGET, label_smoothing=float(value))
    assert CF.cross_entropy(LOGITS, TARGET, label_smoothing=value).equal(expected)
    assert cf.CrossEntropyLoss(label_smoothing=value)(LOGITS, TARGET).equal(expected)
    assert CF.cam_counts(LOGITS, TARGET, tau=value).tp.equal(CF.cam_counts(LOGITS, TARGET, tau=float(value)).tp)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CF.cam_counts(LOGITS, TARGET, tau=float("nan")), r"cam_counts: tau must lie in \[0, 1\], got nan"),
        (lambda: cf.AdaptiveClassWeights(C, eps=float("nan")), "eps must be positive and finite, got nan"),
        (lambda: cf.AdaptiveClassWeights(C, w_min=float("nan")), "w_min must be finite and at least 0, got nan"),
        (lambda: cf.AdaptiveClassWeights(C, w_max=float("nan")), "w_max must be at least w_min=0.1, got nan"),
        (lambda: cf.AdaptiveClassWeights(C, max_error=float("nan")), "max_error must be positive, got nan"),
        (lambda: weighting.effective_number([1], beta=float("nan")), r"beta must lie in \[0, 1\), got nan"),
    ],
)
def test_nan(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("value", [None, "false", 2, 0.0, [True], torch.tensor(True)], ids=repr)
@pytest.mark.parametrize("where", [losses, operators])
def test_align_corners(where, value):
    for name, call in where(align_corners=value).items():
        with pytest.raises(TypeError, match=f"{name}: align_corners must be True or False, got "):
            call()


@pytest.mark.parametrize("value", [True, np.bool_(True), 1])
def test_booleans_of_other_types_are_accepted(value):
    assert CF.cross_entropy(LOGITS, TARGET, align_corners=value).equal(
        CF.cross_entropy(LOGITS, TARGET, align_corners=True)
    )


@pytest.mark.parametrize("value", [5.0, True, "5", None, [5], np.float64(5), np.bool_(True)], ids=repr)
@pytest.mark.parametrize(
    "call",
    [lambda n: CF.confusion_matrix(TARGET, TARGET, num_classes=n), lambda n: cf.AdaptiveClassWeights(n)],
    ids=["confusion_matrix", "AdaptiveClassWeights"],
)
def test_num_classes(call, value):
    is_needed = (
        (ValueError, "num_classes is needed") if value is None else (TypeError, "num_classes must be an integer")
    )
    with pytest.raises((TypeError, is_needed[0]), match=f"num_classes must be an integer, got .*|{is_needed[1]}"):
        call(value)


def test_num_classes_of_other_types_are_accepted():
    for value in (np.int64(C), torch.tensor(C), np.uint8(C)):
        assert CF.confusion_matrix(TARGET, TARGET, num_classes=value).shape == (C, C)
        assert cf.AdaptiveClassWeights(value).num_classes == C


@pytest.mark.parametrize("value", [None, 3, ["mean"], ("sum",), np.array("mean"), torch.ones(1)], ids=repr)
def test_reduction(value):
    for name, call in losses(reduction=value).items():
        with pytest.raises(ValueError, match=f"{name}: reduction must be one of mean, sum, none.*; got "):
            call()
    with pytest.raises(ValueError, match="cross_entropy: reduction must be one of mean"):
        CF.cross_entropy(LOGITS, TARGET, reduction=value)


def test_reduction_none_is_a_string():
    with pytest.raises(ValueError, match='got None; None is called "none"'):
        cf.CrossEntropyLoss(reduction=None)


@pytest.mark.parametrize("value", [None, 1, ["sync"], torch.ones(1)], ids=repr)
def test_label_check(value):
    with pytest.raises(ValueError, match="set_label_check: mode must be one of auto, sync, deferred, off; got"):
        cf.set_label_check(value)


WEIGHTINGS = [getattr(weighting, name) for name in (*weighting.__all__, "log_prior")]


@pytest.mark.parametrize("counts", [None, "12", ["a", "b"], [1, None], {0: 1, 1: 2}, [[1], [2, 3]], [1j, 2]], ids=repr)
def test_counts(counts):
    message = "must be a tensor or a sequence of numbers, one per class, got .*; pass pixels per class"
    for rule in WEIGHTINGS:
        with pytest.raises(TypeError, match=f"counts {message}"):
            rule(counts)
    with pytest.raises(TypeError, match=f"class_counts {message}" if counts is not None else "counts"):
        cf.AdaptiveClassWeights(2, class_counts=counts) if counts is not None else cf.LogitAdjustedLoss(counts)


@pytest.mark.parametrize("counts", [torch.tensor([1, 2]), np.array([1, 2]), (1, 2), torch.tensor([1.0, 2.0]).half()])
def test_counts_of_other_types_are_accepted(counts):
    for rule in WEIGHTINGS:
        torch.testing.assert_close(rule(counts), rule([1, 2]))


@pytest.mark.parametrize("names", ["abc", 5, iter("abc")], ids=["str", "int", "iterator"])
def test_class_names(names):
    with pytest.raises(TypeError, match="AdaptiveClassWeights: class_names must be a list of 3 names, got"):
        cf.AdaptiveClassWeights(C, class_names=names)


@pytest.mark.parametrize(
    "value", [LOGITS.numpy(), LOGITS.tolist(), None, LOGITS.to_sparse()], ids=["np", "list", "None", "sparse"]
)
@pytest.mark.parametrize("source", ["cam", "argmax"])
def test_observe(source, value):
    weights = cf.AdaptiveClassWeights(C, source=source)
    with pytest.raises(TypeError, match=r"(?s)observe: cam must be a tensor, got"):
        weights.observe(value, TARGET)
    weights.begin_sample(torch.ones(2))
    with pytest.raises(TypeError, match=r"(?s)observe: cam must be a tensor, got"):
        weights.observe_sample(value, TARGET, 0)
    assert not weights.counts.any()


@pytest.mark.parametrize(
    "mask", ["yes", [None, True], {0: True}, object()], ids=["str", "None inside", "dict", "object"]
)
def test_mask(mask):
    with pytest.raises(TypeError, match=r"observe: mask must be a bool tensor or a list.*cawa_fast\.unpadded"):
        cf.AdaptiveClassWeights(C).observe(LOGITS, TARGET, mask=mask)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.0,), TypeError, "first must be an integer, got the float 0.0"),
        ((None,), TypeError, "first must be an integer, got None"),
        ((-1,), ValueError, "first must be at least 0, got -1"),
        ((0, 0), ValueError, "stride must be at least 1, got 0"),
        ((0, 1.5), TypeError, "stride must be an integer, got the float 1.5"),
    ],
)
def test_observe_sample(arguments, error, message):
    weights = cf.AdaptiveClassWeights(C)
    weights.begin_sample(torch.ones(4))
    with pytest.raises(error, match=f"observe_sample: {message}"):
        weights.observe_sample(LOGITS, TARGET, *arguments)


@pytest.mark.parametrize("value", [[0.5], None, torch.ones(2, dtype=torch.int64), np.ones(2)], ids=repr)
def test_begin_sample(value):
    with pytest.raises(TypeError, match="begin_sample: probability must be"):
        cf.AdaptiveClassWeights(C).begin_sample(value)


@pytest.mark.parametrize("value", [[0.0, 0.5], [0.5, 1.5], [float("nan")], [[0.5]]], ids=repr)
def test_values_of_begin_sample(value):
    with pytest.raises(ValueError, match=r"begin_sample: probability must be one value in \(0, 1\]"):
        cf.AdaptiveClassWeights(C).begin_sample(torch.tensor(value))


@pytest.mark.parametrize("name", ["observe_confusion", "observe_metrics"])
@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3), r"a NumPy array of float64, shape \(3, 3\)"),
        ([[1, 0, 0]] * 3, "the list"),
        (None, "None"),
        (torch.eye(3), "float32; pass pixel counts"),
        (torch.eye(3).bool(), "bool; pass pixel counts"),
        (torch.eye(3) + 0j, "complex64; pass pixel counts"),
    ],
    ids=["numpy", "list", "None", "float", "bool", "complex"],
)
def test_observed_matrices(name, matrix, message):
    weights = cf.AdaptiveClassWeights(3, metrics=True)
    with pytest.raises(TypeError, match=rf"{name}: matrix must be a tensor \(C, C\), as .*confusion_matrix.*{message}"):
        getattr(weights, name)(matrix)


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.int64])
def test_integer_matrices_are_accepted(dtype):
    weights = cf.AdaptiveClassWeights(3, source="argmax")
    weights.observe_confusion(torch.eye(3).to(dtype))
    assert weights.step().tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("group", ["gloo", 0, [0, 1], object()], ids=["str", "int", "list", "object"])
def test_step(group):
    weights = cf.AdaptiveClassWeights(3, source="argmax")
    weights.observe_confusion(torch.eye(3).long())
    with pytest.raises(TypeError, match=r"step: group must be None or a process group.*torch\.distributed\.new_group"):
        weights.step(group)
    assert weights.counts.any()


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        ([[1, 0], [0, 1]], TypeError, r"the list \[\[1, 0\], \[0, 1\]\]"),
        (np.eye(2), TypeError, "a NumPy array"),
        (None, TypeError, "None"),
        (torch.eye(2) * 1j, TypeError, "complex64"),
        (torch.ones(2, 3), ValueError, r"must be square, got \(2, 3\)"),
        (torch.ones(2), ValueError, r"must be square, got \(2,\)"),
        (torch.tensor(1), ValueError, r"must be square, got \(\)"),
        (
            torch.tensor([[1, -3], [0, 2]]),
            ValueError,
            r"numbers of pixels, at least 0, got -3 to 2; pass the result of",
        ),
        (torch.tensor([[1.0, torch.inf], [0, 2]]), ValueError, r"must hold finite numbers of pixels.* got 0 to inf"),
    ],
    ids=["list", "numpy", "None", "complex", "2 x 3", "vector", "scalar", "negative", "infinite"],
)
def test_segmentation_metrics(matrix, error, message):
    with pytest.raises(error, match=f"segmentation_metrics: matrix must be .*{message}|{message}"):
        cf.segmentation_metrics(matrix)


@pytest.mark.parametrize("loss", [1.0, None, np.float32(1)], ids=repr)
def test_item(loss):
    with pytest.raises(TypeError, match=r"CrossEntropyLoss\.item: loss must be the tensor that the loss returned"):
        cf.CrossEntropyLoss().item(loss)


@pytest.mark.parametrize(
    "sampler", [None, [0, 1], torch.utils.data.SequentialSampler(range(3))], ids=["None", "list", "other"]
)
def test_unpadded(sampler):
    with pytest.raises(TypeError, match="unpadded: sampler must be a DistributedSampler, got"):
        cf.unpadded(sampler)


@pytest.mark.parametrize("value", [None, [0.5], np.ones(3), "rare"], ids=repr)
def test_sampling(value):
    for argument, call in {
        "presence": lambda: sampling.Rarest.of(value),
        "rarity": lambda: sampling.inclusion_probabilities(value, 1),
        "probability": lambda: sampling.draw(value, torch.zeros(3, dtype=torch.int64), np.random.default_rng(0)),
        "order": lambda: sampling.draw(torch.ones(3, dtype=torch.float64), value, np.random.default_rng(0)),
    }.items():
        with pytest.raises(TypeError, match=f"{argument} must be a tensor.*, got"):
            call()


@pytest.mark.parametrize("size", [1.0, None, "1", True], ids=repr)
def test_size_of_a_sample(size):
    with pytest.raises(TypeError, match="inclusion_probabilities: size must be an integer"):
        sampling.inclusion_probabilities(torch.ones(3, dtype=torch.float64), size)


@pytest.mark.parametrize("generator", [None, 0, torch.Generator()], ids=["None", "seed", "torch"])
def test_generator(generator):
    with pytest.raises(TypeError, match=r"draw: generator must be a numpy\.random\.Generator, got .*default_rng"):
        sampling.draw(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.int64), generator)


@pytest.mark.parametrize("index", [None, "index", 2.0, [[True, None]], True], ids=repr)
def test_presence(index):
    with pytest.raises((TypeError, ValueError), match="sampler: index must be "):
        sampling.as_presence(index, 2)


@pytest.mark.parametrize("value", [None, [[1]], np.ones((2, 3, 1))], ids=["None", "list", "numpy"])
def test_estimate(value):
    with pytest.raises(TypeError, match="estimate: rows must be a tensor"):
        estimation.estimate(value, torch.ones(2), 0.9)
    with pytest.raises(TypeError, match="estimate: probability must be a tensor"):
        estimation.estimate(torch.ones(2, 3, 1), value, 0.9)
    with pytest.raises(TypeError, match="estimate: delta must be a number"):
        estimation.estimate(torch.ones(2, 3, 1), torch.ones(2), value)


def test_tensors_of_other_types_are_accepted():
    """Parameters, subclasses and meta tensors are tensors."""

    class Tagged(torch.Tensor):
        pass

    expected = CF.cross_entropy(LOGITS, TARGET)
    assert CF.cross_entropy(nn.Parameter(LOGITS), TARGET).equal(expected)
    assert torch.equal(CF.cross_entropy(LOGITS.as_subclass(Tagged), TARGET).as_subclass(torch.Tensor), expected)
    assert CF.cross_entropy(LOGITS.to("meta"), TARGET.to("meta")).shape == ()
    with pytest.raises(ValueError, match="target is on cpu, but the other tensor on meta"):
        CF.cross_entropy(LOGITS.to("meta"), TARGET)


@pytest.mark.parametrize("value", [None, [1.0], "best", object()], ids=["None", "short", "str", "object"])
def test_what_a_rule_returns(value):
    weights = cf.AdaptiveClassWeights(3, source="argmax", rule=lambda recall: value)
    weights.observe_confusion(torch.eye(3).long())
    with pytest.raises((TypeError, ValueError), match="AdaptiveClassWeights: rule must return"):
        weights.step()


# --------------------------------------------------------------------------------------------------------- one class


ONE = {
    "cross-entropy": cf.CrossEntropyLoss,
    "focal": cf.FocalLoss,
    "recall": cf.RecallLoss,
    "logit-adjusted": lambda: cf.LogitAdjustedLoss([7]),
    "adaptive": lambda: cf.CrossEntropyLoss(cf.AdaptiveClassWeights(1)),
}


@pytest.mark.parametrize("shape", [(2, 1, 4, 5), (2, 1, 8, 10)])
@pytest.mark.parametrize("loss", ONE)
def test_a_single_class_warns(loss, shape):
    with pytest.warns(
        UserWarning,
        match=r"Loss: with one class .* use cawa_fast.BinaryCrossEntropyLoss, or two classes",
    ):
        assert ONE[loss]()(torch.randn(shape), torch.zeros(2, 8, 10, dtype=torch.uint8)) == 0


@pytest.mark.parametrize("loss", ["cross-entropy", "focal", "recall"])
def test_two_classes_do_not_warn(loss):
    ONE[loss]()(torch.randn(2, 2, 4, 5), torch.zeros(2, 8, 10, dtype=torch.uint8))
