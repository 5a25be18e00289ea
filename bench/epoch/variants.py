"""The variants of training and validation that are compared; each trains its own copy of the same network."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import cawa_fast as cf
import cawa_fast.functional as CF
from cawa_fast import _rules
from cawa_fast.recipes.training.stopwatch import Stopwatch

from ..baselines import eager_cam_counts, eager_confusion_matrix, eager_cross_entropy, eager_present_cam_counts
from ..cases import IGNORE, TAU
from ..libraries import import_torchvision

MEANING = {
    "a": "plain PyTorch: `F.interpolate` + `F.cross_entropy`; validation by `max`, `bincount`",
    "b": "a + CAWASeg written directly from the paper: pytorch-grad-cam per class of the image, eager counting",
    "c": "a + CAWASeg with closed-form maps, eager counting",
    "d": "cawa_fast's operators, no adaptive weights",
    "e": "cawa_fast's operators, adaptive weights",
}


class Batch:
    """Images and labels; the labels as int64 for PyTorch and as bytes for this library."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.bytes, self.labels = labels, labels.long()


class Plain:
    """(a): plain PyTorch, with logits in the layout that is fastest on this machine."""

    def __init__(self, network: nn.Module, classes: int, device: torch.device, contiguous: bool) -> None:
        self.network = copy.deepcopy(network).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.classes, self.device, self.contiguous = classes, device, contiguous
        self.weight = torch.ones(classes, device=device)
        self.optimizer = torch.optim.SGD(self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.matrix = torch.zeros(classes, classes, dtype=torch.int64, device=device)

    def train(self, batch: Batch, watch: Stopwatch) -> None:
        """One training step."""
        self.network.train()
        with watch.part("forward"):
            logits = self.network(batch.images)
        with watch.part("loss"):  # including its gradient, so that "backward" is that of the network
            (gradient,) = torch.autograd.grad(self.loss(logits, batch), logits)
        with watch.part("backward"):
            self.optimizer.zero_grad()
            logits.backward(gradient)
        with watch.part("optimizer"):
            self.optimizer.step()

    @torch.no_grad()
    def validate(self, batch: Batch, watch: Stopwatch) -> None:
        """One validation step: the confusion matrix, and the counts for adaptive weights."""
        self.network.eval()
        with watch.part("val_forward"):
            logits = self.network(batch.images)
        with watch.part("val_metric"):
            self.matrix += self.metric(logits, batch)
        self.observe(logits, batch, watch)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return eager_cross_entropy(self._arranged(logits), batch.labels, self.weight, False)

    def metric(self, logits: Tensor, batch: Batch) -> Tensor:
        return eager_confusion_matrix(self._arranged(logits), batch.labels, False)

    def observe(self, logits: Tensor, batch: Batch, watch: Stopwatch) -> None:
        """Does nothing without adaptive weights."""

    def step(self, watch: Stopwatch) -> None:
        """Does nothing without adaptive weights."""

    def _arranged(self, logits: Tensor) -> Tensor:
        return logits.contiguous() if self.contiguous else logits


class PlainAdaptive(Plain):
    """(c): closed-form maps, counted with PyTorch by the faster of two functions."""

    def __init__(self, network: nn.Module, classes: int, device: torch.device, contiguous: bool, present: bool) -> None:
        super().__init__(network, classes, device, contiguous)
        self._count = eager_present_cam_counts if present else eager_cam_counts
        self._classifier = cf.cam.find_classifier(self.network, classes)
        self._counts = torch.zeros(3, classes, dtype=torch.int64, device=device)

    def observe(self, logits: Tensor, batch: Batch, watch: Stopwatch) -> None:
        with watch.part("observe"):
            logits = self._arranged(logits)
            bias = self._classifier.bias
            maps = (logits if bias is None else logits - bias.view(-1, 1, 1)).relu()
            self._counts += torch.stack(self._count(maps, batch.labels, False))

    def step(self, watch: Stopwatch) -> None:
        with watch.part("step"):
            self.weight.copy_(updated_weight(self._counts.cpu()))
            self._counts.zero_()


class Ours(Plain):
    """(d): the library's loss and confusion matrix."""

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return CF.cross_entropy(logits, batch.bytes, self.weight, ignore_index=IGNORE)

    def metric(self, logits: Tensor, batch: Batch) -> Tensor:
        return CF.confusion_matrix(logits, batch.bytes, ignore_index=IGNORE)


class OursAdaptive(Ours):
    """(e): the library with adaptive weights."""

    def __init__(self, network: nn.Module, classes: int, device: torch.device, contiguous: bool) -> None:
        super().__init__(network, classes, device, contiguous)
        self.cawa = cf.CAWA(self.network, classes, ignore_index=IGNORE)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        return self.cawa.loss(batch.bytes)

    def observe(self, logits: Tensor, batch: Batch, watch: Stopwatch) -> None:
        with watch.part("observe"):
            self.cawa.observe(batch.bytes)

    def step(self, watch: Stopwatch) -> None:
        with watch.part("step"):
            self.cawa.step()


def updated_weight(counts: Tensor) -> Tensor:
    """The weights from tp, fp, fn ``(3, C)``, with the library's settings, by which no step needs the last."""
    library = cf.AdaptiveClassWeights(counts.shape[1])
    settings = {name: getattr(library, name) for name in ("delta", "eps", "ratio", "ratio_eps", "w_min", "w_max")}
    return _rules.cawa_weights(counts, class_counts=None, last_csps=library.last_csps, **settings).weight


def naive_counts(network: nn.Module, classifier: nn.Module, batch: Batch, classes: int) -> Tensor:
    """(b): tp, fp, fn ``(3, C)`` with pytorch-grad-cam: a forward and a backward pass for every class of every image.

    Raises:
        ImportError: it is not installed.
    """
    with contextlib.suppress(ImportError):
        import_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    counts = np.zeros((3, classes), dtype=np.int64)
    layer = feeding(network, classifier, batch.images[:1])
    resized = _AtImageSize(network)
    device = batch.images.device
    with GradCAM(resized, [layer]) as cam, torch.enable_grad():
        for image, target in zip(batch.images, batch.bytes.cpu().numpy(), strict=True):
            everywhere = np.ones(target.shape, dtype=np.float32)
            valid = target != IGNORE
            for label in np.unique(target[valid]):
                goal = SemanticSegmentationTarget(int(label), everywhere)
                if device.type == "cuda":
                    goal.mask = goal.mask.to(device)
                mask = (cam(image[None], [goal])[0] > TAU) & valid
                truth = target == label
                hit = int((mask & truth).sum())
                counts[:, label] += hit, int(mask.sum()) - hit, int(truth.sum()) - hit
    return torch.from_numpy(counts)


def feeding(network: nn.Module, classifier: nn.Module, image: Tensor) -> nn.Module:
    """The module whose output is the classifier's input: the target layer of Grad-CAM."""
    outputs: list[tuple[nn.Module, int]] = []
    wanted: list[int] = []

    def remember(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor) and module is not classifier:
            outputs.append((module, output.data_ptr()))

    handles = [module.register_forward_hook(remember) for module in network.modules() if not any(module.children())]
    handles.append(classifier.register_forward_pre_hook(lambda module, inputs: wanted.append(inputs[0].data_ptr())))
    try:
        with torch.no_grad():
            network.eval()(image)
    finally:
        for handle in handles:
            handle.remove()
    found = [module for module, pointer in outputs if pointer == wanted[0]]
    if not found:
        raise ValueError(f"{type(network).__name__}: no module's output is the classifier's input")
    return found[-1]


class _AtImageSize(nn.Module):
    """The network with logits upsampled to the images' size, as pytorch-grad-cam expects."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.interpolate(self.network(images), size=images.shape[-2:], mode="bilinear")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides the warnings of other libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
