"""Which layer computes the logits: the one whose output the network returns is taken."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cawa_fast as cf
from tests.support.heads import C, Net, batch, check, head, listen, up


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
    images, labels = batch()
    for _ in range(2):  # what was found is used, not compared
        output = cawa._listener.recorder.root.train()(images)
        torch.testing.assert_close(cawa.loss(labels), F.cross_entropy(output["out"], labels))


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
    assert cf.cam.find_classifier(model, C) is model.head.base_layer  # and not lora_B, which comes last
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
