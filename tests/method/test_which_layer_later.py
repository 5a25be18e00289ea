"""Which layer computes the logits: what a GPU reports late, and what only a later pass shows."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cawa_fast as cf
from cawa_fast import _output_check
from cawa_fast._recorder import RELEASED
from tests.support.heads import C, Net, batch, check, head, listen, up


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
            assert cawa._listener.recorder.output is RELEASED
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


def test_a_head_that_runs_once_more_in_a_later_pass() -> None:
    def forward(net: Net, x: Tensor) -> Any:
        z = net.head(x)
        return {"out": up(z), "aux": net.head(2 * x)} if net.twice else {"out": up(z)}

    model = Net(forward, head=head())
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    for model.twice in (False, True):
        model(images)
        if model.twice:
            with pytest.raises(
                RuntimeError, match=r"'head' ran 2 times in the last forward pass, and 1 times.*logits="
            ):
                cawa.loss(labels)
        else:
            cawa.loss(labels)


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
