"""Which forward pass ``loss`` and ``observe`` use, and logits that the caller passes instead."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import cawa_fast as cf

C = 4
SIZE = (24, 32)


def network(last: nn.Module | None = None) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        last or nn.Conv2d(8, C, 1),
        nn.Upsample(size=SIZE, mode="bilinear"),
    )


def batch(count: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, *SIZE), torch.randint(0, C, (count, *SIZE))


def evaluate(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        return model(images)


# ------------------------------------------------------------------------------------------------- whose record


def test_observe_twice() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    evaluate(model, images)
    cawa.observe(labels)
    counts = cawa.weights.counts.clone()
    with pytest.raises(RuntimeError, match=r"observed before, and would count twice.*a copy.*compiled before.*logits="):
        cawa.observe(labels)
    assert cawa.weights.counts.equal(counts)


def test_an_observe_that_failed_may_be_repeated() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    evaluate(model, images)
    with pytest.raises(ValueError, match="outside the 4 classes"):
        cawa.observe(labels + C)
    cawa.observe(labels)
    with pytest.raises(RuntimeError, match="observed before"):
        cawa.observe(labels)


@pytest.mark.parametrize("own_loss", [False, True])
def test_a_copy_is_validated_instead(own_loss: bool) -> None:
    """An average of the weights, made before or after CAWA: the last pass that CAWA heard is one of the training."""
    model = network()
    before = copy.deepcopy(model)
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    loss = F.cross_entropy(model(images), labels, cawa.weight) if own_loss else (model(images), cawa.loss(labels))[1]
    loss.backward()
    for average in (before, torch.optim.swa_utils.AveragedModel(model)):
        evaluate(average, images)
        with pytest.raises(RuntimeError, match=r"last forward pass was one of the training.*model.eval\(\).*a copy"):
            cawa.observe(labels)
    cawa.observe(labels, logits=evaluate(average, images))
    assert cawa.step().isfinite().all()


def test_a_copy_is_validated_over_several_epochs() -> None:
    """The last pass that CAWA heard is a validation pass that was used."""
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    evaluate(model, images)
    cawa.observe(labels)
    cawa.step()
    evaluate(copy.deepcopy(model), images)
    with pytest.raises(RuntimeError, match="observed before"):
        cawa.observe(labels)


@pytest.mark.parametrize(
    "views",
    [
        lambda x: (x[..., :16, :16], x[..., 8:, 16:]),
        lambda x: (x, x.flip(3)),
        lambda x: (x, F.interpolate(x, scale_factor=0.5), F.interpolate(x, scale_factor=2.0)),
    ],
    ids=["windows", "mirrored", "scales"],
)
def test_several_passes_between_uses(views: Any) -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    parts = [evaluate(model, view) for view in views(images)]
    with pytest.raises(RuntimeError, match=rf"observe: {len(parts)} forward passes.*windows.*logits=.*CAWA.reset\(\)"):
        cawa.observe(labels)
    cawa.observe(labels, logits=torch.stack(parts).mean(0))
    cawa.reset()
    evaluate(model, images)
    cawa.observe(labels)


def test_two_training_passes_between_losses() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    first, _ = (model(images), cawa.logits)[1], model(images.flip(0))
    with pytest.raises(RuntimeError, match="loss: 2 forward passes have run"):
        cawa.loss(labels)
    both = cawa.loss(labels, logits=first) + cawa.loss(labels.flip(0), logits=cawa.logits)
    both.backward()
    assert model[0].weight.grad is not None


def test_passes_of_the_other_kind_and_of_other_listeners_do_not_count() -> None:
    model = network()
    cawa, other = cf.CAWA(model, C), cf.CAWA(model, C, source="argmax", metrics=True)
    images, labels = batch()
    for _ in range(2):
        for _ in range(3):  # validation that is not scored, or predictions
            evaluate(model, images)
        for _ in range(2):
            with torch.no_grad():
                model.train()(images)  # a teacher's pass
            model(images)
            cawa.loss(labels).backward()
        for _ in range(3):
            evaluate(model, images)
            other.observe(labels)
        other.step()
        for _ in range(2):
            evaluate(model, images)
            cawa.loss(labels, weighted=False)
            cawa.observe(labels)
        cawa.step()


def test_passes_before_a_sample_do_not_count() -> None:
    """With a budget, the sampler says which passes are scored: those before its first batch were for something else."""
    model = network()
    images, labels = batch(6)
    cawa = cf.CAWA(model, C, budget=4)
    for _ in range(2):
        for _ in range(3):  # metrics on all images
            evaluate(model, images)
        for index in torch.tensor(list(cawa.sampler(len(images)))).split(2):
            evaluate(model, images[index])
            cawa.observe(labels[index])
        cawa.step()
    evaluate(model, images[index])
    cawa.observe(labels[index])
    for _ in range(2):
        evaluate(model, images[index])
    with pytest.raises(RuntimeError, match="2 forward passes"):
        cawa.observe(labels[index])


def test_one_pass_may_have_several_losses() -> None:
    """Mixed labels: two losses of one forward pass; in validation the loss before or after the scores."""
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    output = model(images)
    mixed = 0.3 * cawa.loss(labels) + 0.7 * cawa.loss(labels.flip(0))
    expected = 0.3 * F.cross_entropy(output, labels) + 0.7 * F.cross_entropy(output, labels.flip(0))
    torch.testing.assert_close(mixed, expected)


def test_a_loss_of_the_last_validation_pass() -> None:
    """In training, a network that CAWA does not hear: the record is the last validation batch."""
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    evaluate(model, images)
    cawa.observe(labels)
    model.train()
    copy.deepcopy(model)(images)
    with pytest.raises(RuntimeError, match=r"last forward pass was one in evaluation mode.*training mode now"):
        cawa.loss(labels)


def test_a_run_before_compilation_is_not_scored_after_it() -> None:
    torch._dynamo.reset()
    model = network().eval()
    compiled = torch.compile(model, backend="eager")
    images, labels = batch()
    with torch.no_grad():
        compiled(images)  # compiled without hooks
        cawa = cf.CAWA(model, C)
        model(images)
        cawa.observe(labels)
        compiled(images)
        with pytest.raises(RuntimeError, match=r"observed before.*compiled before CAWA was made"):
            cawa.observe(labels)


def test_checkpoints_repeat_the_pass_in_backward() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, reentrant: bool, whole: bool) -> None:
            super().__init__()
            self.net, self.reentrant, self.whole = network(), reentrant, whole

        def forward(self, x: Tensor) -> Tensor:
            first, rest = (self.net[:1], self.net[1:]) if self.whole else (self.net[:1], self.net[1:4])
            z = checkpoint(rest, first(x), use_reentrant=self.reentrant)
            return z if self.whole else self.net[4](z)

    images, labels = batch()
    for reentrant, whole in [(False, False), (False, True), (True, False)]:
        model = Checkpointed(reentrant, whole)
        cawa = cf.CAWA(model, C)
        for _ in range(2):
            output = model(images)
            loss = cawa.loss(labels)
            torch.testing.assert_close(loss, F.cross_entropy(output, labels))
            loss.backward()
        assert model.net[0].weight.grad.abs().sum() > 0
        assert model.net[3].weight.grad.abs().sum() > 0
    model = network()
    cawa = cf.CAWA(model, C)
    for _ in range(2):  # the whole network, from outside
        output = checkpoint(model, images, use_reentrant=False)
        loss, logits = cawa.loss(labels), cawa.logits
        torch.testing.assert_close(loss, F.cross_entropy(output, labels))
        loss.backward()
        assert cawa.logits is logits
    model = Checkpointed(True, True)
    cawa = cf.CAWA(model, C)
    model(images)
    with pytest.raises(RuntimeError, match=r"ran without gradients.*use_reentrant=False.*logits="):
        cawa.loss(labels)
    cawa.loss(labels, logits=model(images)).backward()


# --------------------------------------------------------------------------------------------------- hooks elsewhere


def test_the_layer_was_replaced() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    model[3] = nn.Conv2d(8, C, 1)
    images, labels = batch()
    model(images)
    with pytest.raises(RuntimeError, match=r"'3' is no longer a part of the network.*get_peft_model.*after that"):
        cawa.loss(labels)


def test_the_layer_was_replaced_by_one_that_took_its_hooks() -> None:
    """As prepare_qat(inplace=True) does."""
    model = network()
    cawa = cf.CAWA(model, C)
    index, layer = next((i, layer) for i, layer in enumerate(model) if layer is cawa._listener.candidate.layer)
    other = nn.Conv2d(layer.in_channels, C, 1)
    other._forward_hooks, other._forward_hooks_with_kwargs = layer._forward_hooks, layer._forward_hooks_with_kwargs
    model[index] = other
    model(batch()[0])
    with pytest.raises(RuntimeError, match=r"no longer a part of the network.*quantisation"):
        cawa.loss(batch()[1])


def test_after_close() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    cawa.close()
    model(batch()[0])
    with pytest.raises(RuntimeError, match=r"since close\(\) removed the hooks"):
        cawa.loss(batch()[1])


def test_an_export_is_no_pass() -> None:
    model = network().eval()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    for strict in (False, True):
        exported = torch.export.export(model, (images,), strict=strict)
        torch.testing.assert_close(exported.module()(images), model(images))
        cawa.reset()
        torch.export.export(model, (images,), strict=strict)
        with pytest.raises(RuntimeError, match="has not run"):
            cawa.observe(labels)


def test_data_parallel_is_named() -> None:
    model = network()
    cawa = cf.CAWA(nn.DataParallel(model), C)
    images, labels = batch()

    def replica(module: nn.Module) -> nn.Module:  # as nn.parallel.replicate makes them, which needs GPUs
        twin = module._replicate_for_data_parallel()
        twin._modules = {name: replica(child) for name, child in module._modules.items()}
        twin.__dict__.update(module._parameters)
        return twin

    replica(model)(images)
    with pytest.raises(RuntimeError, match=r"nn.DataParallel runs copies.*DistributedDataParallel.*logits="):
        cawa.loss(labels)


def test_scripting_names_the_hooks() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for twin in (model, copy.deepcopy(model)):
            with pytest.raises(AttributeError, match=r"cannot compile the hooks of CAWA.*CAWA.close\(\)"):
                torch.jit.script(twin)
        cawa.close()
        images, _ = batch()
        for twin in (model.eval(), copy.deepcopy(model)):
            assert torch.jit.script(twin)(images).equal(model(images))


# -------------------------------------------------------------------------------------------------------- any logits


@pytest.mark.parametrize("options", [{}, {"metrics": True}, {"source": "argmax", "metrics": True}, {"momentum": 0.5}])
@pytest.mark.parametrize("size", [(6, 8), SIZE])
def test_without_a_network(options: dict[str, Any], size: tuple[int, int]) -> None:
    """The same loss, gradients and weights as with a hook on a classifier without a bias."""
    model = network(nn.Conv2d(8, C, 1, bias=False))
    hooked, free = cf.CAWA(model, C, ignore_index=255, **options), cf.CAWA(None, C, ignore_index=255, **options)
    for _ in range(2):
        images, labels = batch()
        labels[:, :4] = 255
        model.train()(images)
        loss = hooked.loss(labels)
        z = hooked.logits if size == (6, 8) else F.interpolate(hooked.logits, size, mode="bilinear")
        other = free.loss(labels, logits=z)
        torch.testing.assert_close(loss, other)
        (a,), (b,) = (torch.autograd.grad(part, model[0].weight, retain_graph=True) for part in (loss, other))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        evaluate(model, images)
        mask = [True, False]
        hooked.observe(labels, mask=mask)
        free.observe(labels, logits=hooked.logits, mask=mask)
        assert free.step().equal(hooked.step())
    assert free.state_dict().keys() == hooked.state_dict().keys()
    resumed = cf.CAWA(None, C, ignore_index=255, **options)
    resumed.load_state_dict(free.state_dict())
    assert resumed.weight.equal(free.weight)
    assert resumed.weights.history == free.weights.history


def test_the_maps_are_gradcam_at_the_logits() -> None:
    """By autograd at a layer that does nothing, after the logits; the classifier's bias is in them."""
    model = nn.Sequential(*network()[:4], nn.Identity())
    nn.init.normal_(model[3].bias)
    images, labels = batch()
    model.eval()
    with cf.GradCAM(model, target_layer=model[4]) as cam:
        z = model(images)
        maps = cam()
    free, other = cf.CAWA(None, C), cf.AdaptiveClassWeights(C)
    free.observe(labels, logits=z)
    other.observe(maps, labels)
    assert free.weights.counts.equal(other.counts)
    torch.testing.assert_close(maps, z.relu())  # all gradients are 1, and so is their mean


def test_budget_and_every_without_a_network() -> None:
    model = network()
    images, labels = batch(12)
    hooked, free = (
        cf.CAWA(model, C, budget=6, source="argmax", every=2),
        cf.CAWA(None, C, budget=6, source="argmax", every=2),
    )
    for cawa in (hooked, free):
        for step in range(2):
            sampler = cawa.sampler(len(images), seed=3) if not step else cawa._sampler
            chosen = list(sampler)
            for indices in (chosen[:4], chosen[4:]):
                z = evaluate(model, images[indices])
                cawa.observe(labels[indices], **({} if cawa is hooked else {"logits": z}))
            assert cawa.due() is (step == 1)
            cawa.step()
    torch.testing.assert_close(free.weight, hooked.weight)
    timed = cf.CAWA(None, C, budget=0.5)
    sampler = timed.sampler(len(images))
    timed.loss(labels, logits=model.train()(images))
    assert sampler._training_began is not None


@pytest.mark.parametrize(
    "call",
    [
        lambda cawa, y: cawa.loss(y),
        lambda cawa, y: cawa.observe(y),
        lambda cawa, y: cawa.maps(),
        lambda cawa, y: cawa.logits,
    ],
)
def test_there_is_nothing_to_listen_to(call: Any) -> None:
    with pytest.raises(RuntimeError, match="there is no network to listen to; pass the logits as logits="):
        call(cf.CAWA(None, C), batch()[1])


def test_no_network_and_a_classifier() -> None:
    with pytest.raises(ValueError, match="classifier='head' needs the network"):
        cf.CAWA(None, C, classifier="head")
    assert cf.CAWA(None, C).explain().startswith("CAWA listens to no network")
    cf.CAWA(None, C).close()


def test_it_is_copied_and_pickled() -> None:
    cawa = cf.CAWA(None, C)
    _, labels = batch()
    cawa.observe(labels, logits=torch.randn(2, C, 6, 8))
    cawa.step()
    assert copy.deepcopy(cawa).weight.equal(cawa.weight)


# ------------------------------------------------------------------------------------ unweighted, reset, wrapped output


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "valid_mean", "pixel_mean", "class_mean"])
def test_unweighted(reduction: str) -> None:
    model = network()
    cawa = cf.CAWA(model, C, reduction=reduction, label_smoothing=0.1, ignore_index=255)
    images, labels = batch()
    labels[:, 0] = 255
    evaluate(model, images)
    cawa.observe(labels)
    cawa.step()
    evaluate(model, images)
    plain = cf.CrossEntropyLoss(None, 255, reduction, 0.1)
    torch.testing.assert_close(cawa.loss(labels, weighted=False), plain(cawa.logits, labels))
    assert not torch.allclose(cawa.loss(labels), cawa.loss(labels, weighted=False))


@pytest.mark.parametrize("options", [{}, {"metrics": True}, {"momentum": 0.5}, {"budget": 2}])
def test_reset(options: dict[str, Any]) -> None:
    """What was observed before, as in a trial run, leaves no trace in the next step."""
    model, other = network(), network()
    other.load_state_dict(model.state_dict())
    cawa, fresh = cf.CAWA(model, C, **options), cf.CAWA(other, C, **options)
    images, labels = batch()
    for each in (cawa, fresh):
        if "budget" in options:
            list(each.sampler(2))
    for _ in range(2):
        evaluate(model, images.flip(1))
    cawa.reset()
    evaluate(model, images.flip(1))
    cawa.observe(labels.flip(0))
    cawa.reset()
    with pytest.raises(RuntimeError, match="has not run"):
        cawa.observe(labels)
    for each, net in ((cawa, model), (fresh, other)):
        evaluate(net, images)
        each.observe(labels)
        each.step()
    assert cawa.weight.equal(fresh.weight)
    assert cawa.weights.history == fresh.weights.history


@pytest.mark.parametrize("wrap", [lambda z: z, lambda z: {"out": z, "aux": None}, lambda z: (z, [z * 2])])
def test_the_output_of_a_wrapper_gets_a_gradient_of_zeros(wrap: Any) -> None:
    """Its hooks run, the value and the gradients of the network stay, and infinite values do no harm."""
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    seen = []

    class Wrapper(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.where(x < x.max(), torch.inf)

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            seen.append(grad)
            return grad

    z = model(images)
    plain = cawa.loss(labels)
    expected = torch.autograd.grad(plain, list(model.parameters()), retain_graph=True)
    loss = cawa.loss(labels, output=wrap(Wrapper.apply(z)))
    assert loss.equal(plain)
    loss.backward()
    assert len(seen) == 1
    assert not seen[0].any()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad.equal(gradient)


def test_an_output_without_gradients() -> None:
    model = network()
    cawa = cf.CAWA(model, C)
    images, labels = batch()
    output = model(images)
    with pytest.raises(ValueError, match="output, of type dict, holds no tensor with a gradient"):
        cawa.loss(labels, output={"out": output.detach()})
    with torch.no_grad():
        assert cawa.loss(labels, output=output.detach()).isfinite()
