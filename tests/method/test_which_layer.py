"""Which layer computes the logits: found by comparing the candidates with what the network returns."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cawa_fast as cf
from cawa_fast import _output_check
from cawa_fast._recorder import RELEASED
from cawa_fast.cam import METHODS

C = 5
SIZE = (32, 40)


class Net(nn.Module):
    """Stride 4, heads by name, and a function from features and heads to the output."""

    def __init__(self, output: Any, **heads: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        for name, head in heads.items():
            self.add_module(name, head)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(self, self.norm(self.stem(x)).relu())


def head(channels: int = C) -> nn.Conv2d:
    return nn.Conv2d(8, channels, 1)


def up(z: Tensor, **options: Any) -> Tensor:
    return F.interpolate(z, SIZE, **({"mode": "bilinear"} | options))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, *SIZE), torch.randint(0, C, (2, *SIZE))


def listen(model: nn.Module, **options: Any) -> tuple[cf.CAWA, Any, Tensor]:
    """CAWA after a forward pass, the output, and the loss."""
    cawa = cf.CAWA(model, C, **options)
    images, labels = batch()
    output = model(images)
    return cawa, output, cawa.loss(labels)


def check(model: nn.Module, logits: Any, **options: Any) -> cf.CAWA:
    """The loss, its gradients and the counts are those of the network's own logits, in training and evaluation."""
    cawa = cf.CAWA(model, C, source="argmax", **options)
    images, labels = batch()
    loss = (model.train()(images), cawa.loss(labels))[1]
    expected = F.cross_entropy(up_to(logits(model(images))), labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(part, parameters, allow_unused=True) for part in (loss, expected))
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    cawa.reset()
    with torch.no_grad():
        predicted = up_to(logits(model.eval()(images))).argmax(1)
        cawa.observe(labels)
    assert cawa.weights.counts[0].tolist() == [int(((predicted == c) & (labels == c)).sum()) for c in range(C)]
    return cawa


def up_to(z: Tensor) -> Tensor:
    return z if z.shape[-2:] == SIZE else F.interpolate(z, SIZE, mode="bilinear")


# --------------------------------------------------------------------------------------- what agrees is taken


@pytest.mark.parametrize("align_corners", [False, True])
def test_the_networks_own_align_corners(align_corners: bool) -> None:
    model = Net(lambda net, x: up(net.head(x), align_corners=align_corners), head=head())
    cawa = check(model, lambda output: output)
    assert cawa.weights.align_corners is cawa.criterion.align_corners is align_corners
    assert f"'head': its output, resized bilinearly from 8x10 to 32x40 with align_corners={align_corners}" in (
        cawa.explain()
    )


Pair = namedtuple("Pair", "main side")


@dataclasses.dataclass
class Result:
    loss: None
    masks: Tensor


FORMS = {
    "tensor": (lambda z: z, lambda output: output),
    "tuple": (lambda z: (z, z.mean()), lambda output: output[0]),
    "named tuple": (lambda z: Pair(z, None), lambda output: output.main),
    "scales": (lambda z: [z, z[..., ::2, ::2]], lambda output: output[0]),
    "features first": (lambda z: (torch.zeros(2, 7, 4, 4), z), lambda output: output[1]),
    "out": (lambda z: {"aux": z.new_zeros(2, C, 4, 4), "out": z}, lambda output: output["out"]),
    "another key": (lambda z: {"loss": None, "semantic": z}, lambda output: output["semantic"]),
    "nested": (lambda z: {"heads": [{"seg": z}]}, lambda output: output["heads"][0]["seg"]),
    "attribute": (lambda z: SimpleNamespace(logits=z), lambda output: output.logits),
    "dataclass": (lambda z: Result(None, z), lambda output: output.masks),
    "logarithm of the softmax": (lambda z: z.log_softmax(1), lambda output: output),
    "low resolution": (lambda z: z, lambda output: output),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_output(form: str) -> None:
    """The layer after it, which has as many outputs and is the guess from the structure, is not taken."""
    make, logits = FORMS[form]
    resize = (lambda z: z) if form == "low resolution" else up

    def forward(net: Net, x: Tensor) -> Any:
        net.other(x)
        return make(resize(net.head(x)))

    model = Net(forward, head=head(), other=head())
    assert cf.cam.find_classifier(model, C) is model.other
    cawa = check(model, logits)
    assert "'head'" in cawa.explain()


def test_evaluation_may_return_another_form() -> None:
    """In training logits and auxiliary logits at low resolution, in evaluation probabilities at full resolution."""

    def forward(net: Net, x: Tensor) -> Any:
        z = net.head(x)
        return {"out": z, "side": net.side(x)} if net.training else up(z).softmax(1)

    model = Net(forward, head=head(), side=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    output = model(images)
    torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(up(output["out"]), labels))
    with torch.no_grad():
        model.eval()(images)
        cawa.observe(labels)
    assert "in training, to 'head'" in cawa.explain()
    assert "in evaluation, to 'head'" in cawa.explain()


def test_a_head_that_runs_twice_in_a_pass() -> None:
    """The main logits first, then auxiliary ones with the same weights; in evaluation only the main ones."""

    def forward(net: Net, x: Tensor) -> Any:
        z = net.head(x)
        return {"out": up(z), "aux": up(net.head(x * 0.5))} if net.training else {"out": up(z)}

    cawa = check(Net(forward, head=head()), lambda output: output["out"])
    assert "run 1 of 2" in cawa.explain()


def test_a_run_that_compiled_code_does_not_keep() -> None:
    """Compared eagerly, where the first of two runs is the logits; compiled code keeps the second alone."""
    torch._dynamo.reset()
    model = Net(lambda net, x: {"out": up(net.head(x)), "aux": up(net.head(2 * x))}, head=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    output = model(images)
    torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output["out"], labels))
    torch.compile(model, backend="eager")(images)
    with pytest.raises(RuntimeError, match=r"'head' runs 2 times.*compiled code keeps the last.*not run 1.*logits="):
        cawa.loss(labels)


def test_a_teacher_of_equal_weights_within_the_network() -> None:
    """Its logits have no graph, so that the output, which has one, is not computed from them."""
    model = Net(
        lambda net, x: (net.teacher(x).detach() if net.frozen else net.teacher(x.detach()), up(net.head(x)))[1],
        head=head(),
        teacher=head(),
    )
    model.teacher.load_state_dict(model.head.state_dict())
    model.teacher.requires_grad_(False)
    for model.frozen in (False, True):
        images, labels = batch()
        cawa = cf.CAWA(model, C)
        output = model(images)
        torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels))
        assert "'head'" in cawa.explain()


def test_an_object_without_a_dict() -> None:
    class Slots:
        __slots__ = ("logits",)

        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    model = Net(lambda net, x: Slots(up(net.head(x))), head=head())
    cawa = check(model, lambda output: output.logits)
    assert "is output.logits" in cawa.explain()


def test_the_input_of_the_classifier_by_name() -> None:
    model = Net(lambda net, x: up(net.head(input=x)), head=head())
    cawa = check(model, lambda output: output)
    with torch.no_grad():
        model(batch()[0])
    assert cawa.maps().shape == (2, C, 8, 10)


def test_a_squeeze_with_as_many_channels() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        return up(net.head(x * net.expand(net.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()))

    check(Net(forward, head=head(), squeeze=head(), expand=nn.Conv2d(C, 8, 1)), lambda output: output)


class Adapter(nn.Module):
    """As peft's LoRA: the layer, and a correction that is 0 at first."""

    def __init__(self, base_layer: nn.Conv2d) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.ModuleDict({"default": nn.Conv2d(8, 2, 1, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Conv2d(2, C, 1, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 2 * self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("trained", [False, True])
def test_an_adapter_around_the_classifier(trained: bool) -> None:
    model = Net(lambda net, x: up(net.head(x)), head=Adapter(head()))
    if trained:
        nn.init.normal_(model.head.lora_B["default"].weight)
    cawa = check(model, lambda output: output)
    assert "'head'" in cawa.explain()
    images, _ = batch()
    with torch.no_grad():
        z = model.head(model.norm(model.stem(images)).relu())
        model(images)
    torch.testing.assert_close(cawa.maps(), (z - model.head.base_layer.bias.view(-1, 1, 1)).relu())
    layercam = cf.CAWA(model, C, method="layercam")
    model(images)
    with pytest.raises(ValueError, match=r"'layercam' needs the weight of 'head', an adapter"):
        layercam.maps()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        net.other(x)
        return up(net.head(x).to(dtype), align_corners=True)

    model = Net(forward, head=head(), other=head())
    cawa, _, _ = listen(model)
    assert "'head'" in cawa.explain()
    assert cawa.weights.align_corners is True


def test_a_map_that_does_not_vary_leaves_align_corners_open() -> None:
    model = Net(lambda net, x: up(net.head(x), align_corners=True), head=head())
    nn.init.zeros_(model.head.weight)
    nn.init.normal_(model.head.bias)
    cawa, _, _ = listen(model)
    assert "align_corners not seen yet" in cawa.explain()
    assert cawa.weights.align_corners is False
    nn.init.normal_(model.head.weight)
    images, labels = batch()
    output = model(images)
    torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels))
    assert cawa.weights.align_corners is True


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_an_output_that_tells_nothing(value: float) -> None:
    """With a classifier that is 0 at first, or a network that has diverged, the loss is that of the output itself."""
    model = Net(lambda net, x: (net.other(x), up(net.head(x)))[1], head=head(), other=head())
    for part in (model.head, model.other):
        nn.init.constant_(part.weight, value)
        nn.init.zeros_(part.bias)
    cawa, _, loss = listen(model)
    assert "not compared" in cawa.explain()
    loss.backward()
    assert model.other.weight.grad is None
    assert model.head.weight.grad is not None
    nn.init.normal_(model.head.weight)
    nn.init.normal_(model.other.weight)
    images, labels = batch()
    output = model(images)
    torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels))
    assert "'head'" in cawa.explain()


# ------------------------------------------------------------------------------------------------ what does not agree


MISMATCHES: dict[str, tuple[Any, dict[str, nn.Module], str]] = {
    "sum of heads": (lambda net, x: up(net.low(x) + net.high(x)), {"low": head(), "high": head()}, r"% off"),
    "scale": (lambda net, x: up(net.head(x) * 3), {"head": head()}, r"head: \(2, 5, 8, 10\), .*% off"),
    "temperature that is learned": (
        lambda net, x: up(net.scale(net.head(x))),
        {"head": head(), "scale": nn.BatchNorm2d(C)},
        "% off",
    ),
    "nearest": (lambda net, x: up(net.head(x), mode="nearest"), {"head": head()}, "mode='nearest'"),
    "bicubic": (lambda net, x: up(net.head(x), mode="bicubic"), {"head": head()}, "mode='bicubic'"),
    "resized twice": (
        lambda net, x: up(F.interpolate(net.head(x), scale_factor=2, mode="bilinear")),
        {"head": head()},
        "% off",
    ),
    "cropped": (
        lambda net, x: F.interpolate(net.head(x), scale_factor=5, mode="bilinear")[..., 4:-4, 5:-5],
        {"head": head()},
        "% off",
    ),
    "dropout": (lambda net, x: up(F.dropout(net.head(x), 0.5)), {"head": head()}, "% off"),
    "3x3 after it": (
        lambda net, x: up(net.last(net.head(x))),
        {"head": head(), "last": nn.Conv2d(C, C, 3, padding=1)},
        "% off",
    ),
    "channels permuted": (lambda net, x: up(net.head(x))[:, [1, 0, 2, 3, 4]], {"head": head()}, "% off"),
    "did not run": (
        lambda net, x: up(net.last(x)) + net.tiny(x).sum() * 0,
        {"unused": head(), "tiny": head(), "last": nn.Conv2d(8, C, 3, padding=1)},
        r"unused: did not run\n  tiny",
    ),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_no_layer_agrees(name: str) -> None:
    forward, heads, message = MISMATCHES[name]
    model = Net(forward, **copy.deepcopy(heads))
    with pytest.raises(ValueError, match=r"should be the bilinearly resized output of its classifier") as error:
        listen(model)
    assert error.match(message)
    assert error.match(r"classifier=.*CAWA\(None, 5\), cawa.loss\(labels, logits=z\).*verify=False")
    for part in heads:
        assert part in str(error.value) or not isinstance(heads[part], nn.Conv2d) or heads[part].kernel_size != (1, 1)
    images, _ = batch()
    with cf.GradCAM(model, num_classes=C), pytest.raises(ValueError, match="target_layer, which works with any"):
        model(images)


LEARNED = {
    "scale of 1": lambda net, x: net.head(x) * net.factor,
    "adapter of 0": lambda net, x: net.head(x) + net.right(net.left(x)),
    "residual": lambda net, x: net.head(x) * (1 + net.right.weight.sum()),
}


@pytest.mark.parametrize("name", LEARNED)
def test_what_changes_nothing_before_training_is_seen(name: str) -> None:
    model = Net(
        lambda net, x: up(LEARNED[name](net, x)),
        head=head(),
        left=nn.Conv2d(8, 2, 1),
        right=nn.Conv2d(2, C, 1, bias=False),
    )
    model.factor = nn.Parameter(torch.ones(()))
    nn.init.zeros_(model.right.weight)
    with pytest.raises(ValueError, match=r"head.*agrees now, but other trained layers are between it and the output"):
        listen(model, classifier="head")


def test_dropout_after_the_classifier_agrees_in_evaluation_only() -> None:
    model = Net(lambda net, x: up(net.drop(net.head(x))), head=head(), drop=nn.Dropout(0.5))
    images, labels = batch()
    cawa = cf.CAWA(model, C)
    with torch.no_grad():
        model.eval()(images)
        cawa.observe(labels)
    model.train()(images)
    with pytest.raises(ValueError, match="% off"):
        cawa.loss(labels)


def test_dropout_before_the_classifier() -> None:
    cawa, _, loss = listen(Net(lambda net, x: up(net.head(net.drop(x))), head=head(), drop=nn.Dropout2d(0.5)))
    assert "'head'" in cawa.explain()
    assert loss.isfinite()


@pytest.mark.parametrize("keys", [("segmentation", "depth"), ("a", "b")])
def test_two_tasks_with_as_many_channels(keys: tuple[str, str]) -> None:
    model = Net(lambda net, x: {keys[0]: up(net.one(x)), keys[1]: up(net.two(x))}, one=head(), two=head())
    with pytest.raises(ValueError, match=r"several outputs.*have 5 channels") as error:
        listen(model)
    assert error.match(rf"one: output\['{keys[0]}'\]\n  two: output\['{keys[1]}'\]\nPass the layer.*classifier=")
    for name, key in zip(("one", "two"), keys, strict=True):
        check(model, lambda output, key=key: output[key], classifier=name)


def test_a_sum_and_its_part_under_unknown_keys() -> None:
    model = Net(lambda net, x: {"low": net.low(x), "sum": net.low(x) + net.high(x)}, low=head(), high=head())
    with pytest.raises(ValueError, match=r"no 1x1 convolution: output\['sum'\]"):
        listen(model)


def test_two_losses_of_a_pass_that_tells_nothing() -> None:
    """Mixed labels: both are those of the output, and no other layer is trained by the second."""
    model = Net(lambda net, x: (net.other(x), up(net.head(x)))[1], head=head(), other=head())
    for layer in (model.head, model.other):
        nn.init.zeros_(layer.weight)
    model.other.bias.data.copy_(model.head.bias.data.zero_())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    model(images)
    (cawa.loss(labels) + cawa.loss(labels.flip(0))).backward()
    assert model.other.weight.grad is None
    assert model.head.weight.grad is not None


@pytest.mark.parametrize("method", METHODS)
def test_maps_of_a_pass_that_tells_nothing(method: str) -> None:
    """Of a classifier that is 0 at first: no map has a value, by any method."""
    model = Net(lambda net, x: up(net.head(x)), head=head()).eval()
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    cawa = cf.CAWA(model, C, method=method)
    images, labels = batch()
    with torch.no_grad():
        model(images)
        assert not cawa.maps().any()
        cawa.observe(labels)
    assert cawa.step().isfinite().all()


def test_the_first_of_several_maps_is_taken_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(lambda net, x: (up(net.head(x)), up(net.dsn(x))), head=head(), dsn=head())
    check(model, lambda output: output[0])
    (record,) = caplog.records  # once
    assert re.search(r"output\[0\], of 'head', is taken.*'dsn' \(output\[1\]\).*classifier='head'", record.getMessage())
    caplog.clear()
    check(model, lambda output: output[0], classifier="head")
    check(model, lambda output: output[1], classifier="dsn")
    auxiliary = Net(lambda net, x: (up(net.head(x)), net.aux(x)), head=head(), aux=head())
    check(auxiliary, lambda output: output[0])
    named = Net(lambda net, x: SimpleNamespace(side=up(net.dsn(x)), logits=up(net.head(x))), head=head(), dsn=head())
    check(named, lambda output: output.logits)
    assert not caplog.records


def test_the_wrong_layer_by_name() -> None:
    model = Net(lambda net, x: {"out": up(net.head(x)), "n": net.side(x).mean()}, head=head(), side=head())
    with pytest.raises(ValueError, match=r"but the layer passed as classifier= does not do that:\n  side: .*% off"):
        listen(model, classifier="side")
    cawa, _, _ = listen(model, classifier="side", verify=False)
    assert cawa.explain() == "CAWA listens to 'side', and does not compare it with the output (verify=False)."


def test_another_number_of_channels_than_the_network_has() -> None:
    model = Net(lambda net, x: up(net.last(net.inner(x))), inner=head(), last=nn.Conv2d(C, 7, 1))
    with pytest.raises(ValueError, match=r"'inner'.*has 5 outputs, but the network has 7 \(output is \(2, 7, 32, 40\)"):
        listen(model)


def test_align_corners_that_the_user_passes_stays(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(lambda net, x: up(net.head(x)), head=head())
    cawa, _, _ = listen(model, align_corners=True)
    assert cawa.weights.align_corners is True
    assert "align_corners=True was passed, but the network resizes its logits with align_corners=False" in caplog.text
    assert "whereas align_corners=True was passed" in cawa.explain()


def test_parts_of_the_network_called_by_hand(caplog: pytest.LogCaptureFixture) -> None:
    model = Net(None, head=head(), other=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    for _ in range(2):
        model.head(model.stem(images))
        cawa.loss(labels)
    (record,) = caplog.records  # once
    assert (
        "could not be compared with what the network returned: were parts of the network called" in record.getMessage()
    )
    quiet = cf.CAWA(model, C, classifier="head")
    model.head(model.stem(images))
    quiet.loss(labels)
    assert len(caplog.records) == 1


def test_a_network_that_returns_losses(caplog: pytest.LogCaptureFixture) -> None:
    """As those of MMSegmentation do in training. The first pass that returns a map is compared."""

    def forward(net: Net, x: Tensor) -> Any:
        z = net.head(x) + net.high(x)
        return {"loss": z.mean()} if net.training else up(z)

    model = Net(forward, head=head(), high=head())
    cawa, _, _ = listen(model)
    assert "output holds no map with 5 channels" in caplog.text
    images, labels = batch()
    with torch.no_grad():
        model.eval()(images)
    with pytest.raises(ValueError, match="% off"):
        cawa.observe(labels)


@pytest.mark.parametrize(
    ("last", "message"),
    [
        (nn.Conv2d(8, C, 3, padding=1), "no 1x1 nn.Conv2d with num_classes=5 outputs"),
        (nn.ConvTranspose2d(8, C, 2, stride=2), r"pass the logits yourself: cawa = CAWA\(None, 5\)"),
        (nn.Conv2d(8, C * 2, 1, groups=2), r"cawa.observe\(labels, logits=z\)"),
        (nn.Linear(8, C), r"cawa.loss\(labels, logits=z\)"),
    ],
)
def test_heads_of_other_kinds_are_refused_with_the_way_out(last: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cf.CAWA(nn.Sequential(nn.Conv2d(3, 8, 3), last), C)


def test_compiled() -> None:
    torch._dynamo.reset()
    model = Net(lambda net, x: {"out": up(net.low(x) + net.high(x))}, low=head(), high=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    torch.compile(model, backend="eager", fullgraph=True)(images)
    with pytest.raises(ValueError, match="% off"):
        cawa.loss(labels)
    right = Net(lambda net, x: (up(net.head(x), align_corners=True), net.other(x).mean()), head=head(), other=head())
    cawa = cf.CAWA(right, C)
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(right, backend=counter, fullgraph=True)
    for _ in range(3):
        output = compiled(images)
        torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output[0], labels))
    assert counter.frame_count == 1
    assert cawa.weights.align_corners is True


# ------------------------------------------------------------------------------------------------ Grad-CAM, and costs


def test_gradcam_takes_what_agrees() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        net.other(x)
        return up(net.head(x), align_corners=True)

    model = Net(forward, head=head(), other=head()).eval()
    images, _ = batch()
    with torch.no_grad(), cf.GradCAM(model) as cam:
        model(images)
        maps = cam()
    assert cam.classifier is model.head
    assert "'head'" in cam.explain()
    features = model.norm(model.stem(images)).relu()
    torch.testing.assert_close(maps, F.conv2d(features, model.head.weight).relu())
    unverified = cf.GradCAM(model, verify=False)
    assert unverified.classifier is model.other


def test_until_a_gpu_has_finished_the_loss_is_of_the_networks_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits: the loss is right from the first pass on, and observe, which may not guess, decides."""
    model = Net(lambda net, x: (net.other(x), up(net.head(x), align_corners=True))[1], head=head(), other=head())
    ready = [False]
    monkeypatch.setattr(_output_check.Comparison, "is_ready", lambda self: ready[0])
    decide, decided = _output_check.Comparison.decide, []
    monkeypatch.setattr(_output_check.Comparison, "decide", lambda self: (decided.append(self), decide(self))[1])
    cawa = cf.CAWA(model, C, source="argmax")
    images, labels = batch()
    for _ in range(3):
        output = model(images)
        torch.testing.assert_close(cawa.logits, output, rtol=0, atol=0)
        torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels))
    assert not decided
    ready[0] = True
    output = model(images)
    torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels))
    assert len(decided) == 1
    assert cawa.logits.shape[-2:] == (8, 10)
    ready[0] = False
    with torch.no_grad():
        predicted = model.eval()(images).argmax(1)
        cawa.observe(labels)
    assert cawa.weights.counts[0].sum() == (predicted == labels).sum()
    assert len(decided) == 1  # the layer is known
    cawa.step()
    assert len(decided) == 2


def test_probabilities_until_a_gpu_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_output_check.Comparison, "is_ready", lambda self: False)
    for form in (lambda z: z.softmax(1), lambda z: z.log_softmax(1), lambda z: z):
        model = Net(lambda net, x, form=form: form(up(net.head(x))), head=head())
        cawa, _, loss = listen(model)
        torch.manual_seed(1)
        images, labels = batch()
        model(images)
        loss = cawa.loss(labels)
        z = up(model.head(model.norm(model.stem(images)).relu()))
        torch.testing.assert_close(loss, F.cross_entropy(z, labels))
        ours, theirs = (torch.autograd.grad(x, model.stem.weight) for x in (loss, F.cross_entropy(z, labels)))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_an_error_that_a_gpu_reports_late_comes_at_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(lambda net, x: up(net.head(x) if net.training else net.head(x) + net.high(x)), head=head(), high=head())
    cawa, _, _ = listen(model)
    monkeypatch.setattr(_output_check.Comparison, "is_ready", lambda self: False)
    images, labels = batch()
    with torch.no_grad():
        model.eval()(images)
        cawa.observe(labels)
    with pytest.raises(ValueError, match="% off"):
        cawa.step()


def test_a_comparison_is_made_once_for_each_kind_and_size_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    init = _output_check.Comparison.__init__
    monkeypatch.setattr(
        _output_check.Comparison, "__init__", lambda self, *a, **k: (made.append(a), init(self, *a, **k))[1]
    )
    model = Net(lambda net, x: F.interpolate(net.head(x), scale_factor=4, mode="bilinear"), head=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    for epoch in range(2):
        for _ in range(3):
            model.train()(images)
            cawa.loss(labels).backward()
        for views in (images, images, images[..., :16], images[..., :16]):
            with torch.no_grad():
                model.eval()(views)
                cawa.observe(labels[..., : views.shape[-1]])
        assert len(made) == 3 * (epoch + 1)
        assert cawa._listener.recorder.output is RELEASED
        cawa.step()


# ---------------------------------------------------------------------------------------- what is seen in a later pass


def test_padding_and_cropping_that_the_first_images_do_not_need() -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        z = net.head(net.stem(F.pad(x, (0, -width % 16, 0, -height % 16))))
        return F.interpolate(z, scale_factor=4, mode="bilinear")[..., :height, :width]

    model = Net(None, head=head())
    model.forward = forward.__get__(model)
    cawa = cf.CAWA(model, C).eval()
    model.eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 32, 48))
        cawa.observe(torch.randint(0, C, (1, 32, 48)))
        for size in ((30, 48), (32, 40)):  # both are padded to the size of the first
            model(torch.randn(1, 3, *size))
            with pytest.raises(ValueError, match="% off"):
                cawa.observe(torch.randint(0, C, (1, *size)))
            cawa.reset()


@pytest.mark.parametrize("after", ["normalisation", "refinement", "scale"])
def test_layers_after_the_classifier_that_do_nothing_at_first(after: str) -> None:
    """The first pass is one of evaluation, which has no graph; they are seen in training, or after it."""
    model = Net(
        lambda net, x: up(net.after(net.head(x)) if after != "refinement" else net.head(x) + net.after(net.head(x))),
        head=head(),
        after={
            "normalisation": nn.BatchNorm2d(C),
            "refinement": nn.Conv2d(C, C, 3, padding=1),
            "scale": nn.Conv2d(C, C, 1, groups=C, bias=False),
        }[after],
    )
    if after == "refinement":
        nn.init.zeros_(model.after.weight)
        nn.init.zeros_(model.after.bias)
    elif after == "scale":
        nn.init.ones_(model.after.weight)
    cawa = cf.CAWA(model, C)
    images, labels = batch()

    def validate() -> None:
        with torch.no_grad():
            model.eval()(images)
            cawa.observe(labels)
        cawa.step()

    validate()
    for parameter in model.after.parameters():
        parameter.data += torch.rand_like(parameter)
    with pytest.raises(ValueError, match="% off"):
        validate()


def test_another_head_from_a_later_stage_on() -> None:
    model = Net(lambda net, x: up(net.one(x) if net.stage == 1 else net.two(x)), one=head(), two=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    for model.stage in (1, 2):
        for _ in range(2):
            output = model.train()(images)
            torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output, labels, cawa.weight))
        with torch.no_grad():
            model.eval()(images)
            cawa.observe(labels)
        cawa.step()


def test_a_compiled_scale_of_1_is_seen_when_it_has_been_trained() -> None:
    torch._dynamo.reset()
    model = Net(lambda net, x: up(net.head(x) * net.factor), head=head())
    model.factor = nn.Parameter(torch.ones(()))
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    compiled = torch.compile(model, backend="aot_eager")
    compiled(images)
    cawa.loss(labels)
    model.factor.data += 1
    with torch.no_grad():
        compiled.eval()(images)
        with pytest.raises(ValueError, match="% off"):
            cawa.observe(labels)


def test_a_head_that_runs_on_parts_of_the_batch() -> None:
    model = Net(lambda net, x: torch.cat([up(net.head(part)) for part in x.chunk(2)]), head=head())
    with pytest.raises(ValueError, match=r"head: \(1, 5, 8, 10\), not comparable"):
        listen(model)
    images, _ = batch()
    with cf.GradCAM(model), pytest.raises(ValueError, match="not comparable"):
        model(images)


@pytest.mark.parametrize("change", ["add_", "div_", "relu_"])
def test_logits_that_are_changed_in_place_have_no_maps(change: str) -> None:
    def forward(net: Net, x: Tensor) -> Tensor:
        z = net.head(x)
        return up(z.add_(net.skip(x)) if change == "add_" else z.div_(2) if change == "div_" else z.relu_())

    model = Net(forward, head=head(), skip=head())
    cawa, _, loss = listen(model)
    assert loss.isfinite()
    with pytest.raises(ValueError, match=r"output of 'head' was changed in place.*source='argmax'"):
        cawa.maps()
    check(model, lambda output: output)


def plain_output(net: Net, x: Tensor) -> Tensor:
    return up(net.head(x))


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net(plain_output, head=head())
        self.cawa = cf.CAWA(self, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def test_a_network_that_holds_its_own_cawa_is_copied_and_saved() -> None:
    model = Holder()
    images, labels = batch()
    model(images)
    loss = model.cawa.loss(labels)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin(images)
        assert twin.cawa.loss(labels).equal(loss)
        twin.cawa.close()
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in twin.modules())
    model(images)
    assert model.cawa.loss(labels).equal(loss)


def test_the_lattice_is_the_resize() -> None:
    for low, high in [((8, 10), (32, 40)), ((3, 5), (7, 4)), ((1, 6), (9, 6)), ((16, 16), (45, 45)), ((4, 4), (4, 9))]:
        z = torch.randn(2, 3, *low, dtype=torch.float64)
        for align_corners in (False, True):
            whole = F.interpolate(z, high, mode="bilinear", align_corners=align_corners)
            wanted, places = _output_check._lattice(whole)
            found = _output_check._resized_at(z, high, places, align_corners)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
