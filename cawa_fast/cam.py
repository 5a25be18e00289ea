r"""Grad-CAM for segmentation networks: in closed form at the classifier, by autograd at any layer.

Segmentation networks end in a 1x1 convolution :math:`z_c = \sum_k W_{ck} A_k + b_c`. The gradient of the score
:math:`y^c = \sum_p z_c(p)` with respect to :math:`A_k` is :math:`W_{ck}` at every position, so that Grad-CAM is

.. math:: \mathrm{ReLU}\Bigl(\sum_k W_{ck} A_k\Bigr) = \mathrm{ReLU}(z_c - b_c)

up to a positive factor that any normalisation removes: no backward pass. A bilinear resize after the classifier does
not change this, since the weights of the samples that make an output pixel sum to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("gradcam", "gradcam++", "hirescam", "layercam")

# Classes whose gradients one batched backward pass computes together: more is faster until the batch of activations no
# longer fits in memory, which it multiplies.
_CLASSES_PER_BACKWARD = 8


class GradCAM:
    """Class activation maps of the last forward pass, for all classes and the whole batch.

    Without ``target_layer`` the network's last 1x1 classifier is found and the closed form is used: no backward pass,
    and it works under ``no_grad``, ``inference_mode`` and autocast. With a ``target_layer`` autograd is used, all
    classes of a batch from one forward pass; put the network in ``eval()`` mode, or batch normalisation lets the images
    of a batch influence one another.

    Maps are defined up to a positive factor per class, which any normalisation removes. Grad-CAM++ is the exception:
    it is not linear in the gradient, so that the score matters (in closed form the classifier's own output).

    Args:
        model: the network; its output is logits ``(N, C, H, W)``, or a mapping or object that holds them as ``"out"``
            or ``"logits"``.
        target_layer: a layer with output ``(N, K, h, w)``, or its dotted name. Default: the classifier's input.
        classifier: the 1x1 ``nn.Conv2d`` that computes the logits, or its dotted name, where the last one is the wrong
            one. With ``target_layer`` its output gives the scores, otherwise the network's output does.
        num_classes: ``C``: narrows the search for the classifier.
        method: ``"gradcam"`` (Selvaraju et al. 2017), ``"gradcam++"`` (Chattopadhay et al. 2018), ``"hirescam"``
            (Draelos and Carin 2020) or ``"layercam"`` (Jiang et al. 2021).

    Raises:
        ValueError: no classifier is found, a name does not exist, or the method is unknown.

    Example:
        >>> import torch, cawa_fast as cf
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, stride=4), torch.nn.ReLU(), torch.nn.Conv2d(8, 5, 1))
        >>> with torch.no_grad(), cf.GradCAM(model) as cam:
        ...     logits = model(torch.rand(2, 3, 32, 32))
        ...     maps = cam()  # at the layer's resolution, after the ReLU, before normalisation
        >>> maps.shape
        torch.Size([2, 5, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        target_layer: nn.Module | str | None = None,
        *,
        classifier: nn.Conv2d | str | None = None,
        num_classes: int | None = None,
        method: str = "gradcam",
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"GradCAM: method must be one of {', '.join(METHODS)}; got {method!r}")
        self.model = model
        self.method = method
        self.target_layer = None if target_layer is None else resolve(model, target_layer, "target_layer")
        self.classifier: nn.Conv2d | None = None
        if target_layer is None or classifier is not None:
            self.classifier = find_classifier(model, num_classes, classifier)
        self._guessed = classifier is None and num_classes is None
        self._record: tuple[Tensor, Tensor] | None = None  # (activations, scores' logits) of the last forward pass
        self._activations: Tensor | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._grad_mode: torch.enable_grad | None = None

    def __enter__(self) -> GradCAM:
        if self.target_layer is None:
            assert self.classifier is not None
            self._handles = [self.classifier.register_forward_hook(self._record_classifier)]
            if self._guessed:
                self._handles.append(self.model.register_forward_hook(self._check_guess))
            return self
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "GradCAM: target_layer needs gradients, which inference_mode rules out; use torch.no_grad() outside "
                "the context, or leave target_layer out for the closed form"
            )
        scored = self.model if self.classifier is None else self.classifier
        self._handles = [
            self.target_layer.register_forward_hook(self._record_activations),
            scored.register_forward_hook(self._record_scores),
        ]
        self._grad_mode = torch.enable_grad()
        self._grad_mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._grad_mode is not None:
            self._grad_mode.__exit__(kind, value, traceback)
            self._grad_mode = None

    def __call__(self) -> Tensor:
        """Maps ``(N, C, h, w)`` of the last forward pass: at the layer's resolution, at least 0, not normalised.

        Raises:
            RuntimeError: no forward pass was made inside the context.
        """
        if self._record is None:
            raise RuntimeError("GradCAM: no forward pass was seen; call model(x) inside `with GradCAM(model) as cam:`")
        activations, logits = self._record
        if self.target_layer is None:
            assert self.classifier is not None
            return closed_form(self.classifier, activations, logits, self.method)
        return _by_autograd(activations, logits, self.method)

    def _record_classifier(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._record = inputs[0].detach(), output.detach()

    def _check_guess(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A network whose head is no 1x1 convolution may have one further in, whose outputs are not the classes."""
        assert self.classifier is not None
        try:
            outputs = find_logits(output).shape[1]
        except ValueError:
            return
        if outputs != self.classifier.out_channels:
            raise ValueError(
                f"GradCAM: the last 1x1 convolution has {self.classifier.out_channels} outputs, but the network has "
                f"{outputs}; name the right one with classifier=, or give a target_layer"
            )

    def _record_activations(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"GradCAM: target_layer must output a tensor (N, K, h, w), got {found}; choose another layer"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "GradCAM: target_layer needs gradients, but the forward pass runs under no_grad; open no_grad outside "
                "the GradCAM context or not at all, or leave target_layer out for the closed form"
            )
        if not output.requires_grad:  # all before it is frozen
            output.requires_grad_()
        # What follows may overwrite the layer's output (ReLU(inplace=True)): hand on a copy, keep the original.
        self._activations = output
        return output.clone()

    def _record_scores(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._activations is None:
            raise RuntimeError("GradCAM: the target_layer did not run before the logits were computed")
        self._record = self._activations, find_logits(output)
        self._activations = None


def find_classifier(
    model: nn.Module, num_classes: int | None = None, classifier: nn.Module | str | None = None
) -> nn.Conv2d:
    """The convolution that computes the logits: ``classifier`` where given, else the last 1x1 one.

    "Last" in the order of ``model.named_modules()``, with ``num_classes`` outputs where that is given; auxiliary heads
    (a part of the name begins with ``aux``), which many models define after the main one, are the last resort.

    Raises:
        ValueError: there is none, or what was named is not a 1x1 convolution (or has another number of outputs).
    """
    if classifier is not None:
        module = resolve(model, classifier, "classifier")
        if not isinstance(module, nn.Conv2d) or not _is_pointwise(module):
            raise ValueError(
                f"classifier must be a 1x1 nn.Conv2d (stride 1, one group), got {module}; for another kind of layer "
                "give GradCAM a target_layer"
            )
        if num_classes is not None and module.out_channels != num_classes:
            raise ValueError(f"classifier has {module.out_channels} outputs, but num_classes={num_classes}")
        return module
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        and _is_pointwise(module)
        and (num_classes is None or module.out_channels == num_classes)
    ]
    main = [pair for pair in found if not any(part.startswith("aux") for part in pair[0].split("."))]
    if not found:
        outputs = "" if num_classes is None else f" with num_classes={num_classes} outputs"
        raise ValueError(
            f"no 1x1 nn.Conv2d{outputs} in {type(model).__name__}; name the layer with classifier=, or give GradCAM a "
            "target_layer, which works with any network"
        )
    return (main or found)[-1][1]


def resolve(model: nn.Module, layer: nn.Module | str, argument: str) -> nn.Module:
    """The module itself, or the submodule of that dotted name."""
    if isinstance(layer, nn.Module):
        return layer
    try:
        return model.get_submodule(layer)
    except AttributeError:
        raise ValueError(
            f"{argument}: {type(model).__name__} has no submodule {layer!r}; "
            "`for name, _ in model.named_modules()` lists them"
        ) from None


def find_logits(output: Any) -> Tensor:
    """The logits in a network's output: a tensor, ``["out"]``, ``["logits"]``, ``.logits`` or the first item."""
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("out", "logits") if key in output), output)
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise ValueError(
            f"no logits (N, C, H, W) in the network's output of type {type(output).__name__}; name the classifier with "
            "classifier="
        )
    return output


def closed_form(classifier: nn.Conv2d, activations: Tensor, logits: Tensor, method: str = "gradcam") -> Tensor:
    """Maps ``(N, C, h, w)`` from the 1x1 classifier's input ``(N, K, h, w)`` and output ``(N, C, h, w)`` alone."""
    with torch.no_grad():
        if method in ("gradcam", "hirescam"):  # the gradient is W at every position: averaging it changes nothing
            if classifier.bias is None:
                return logits.detach().relu()
            return (logits.detach() - _whole(classifier.bias).to(logits.dtype).view(-1, 1, 1)).relu_()
        weight = _whole(classifier.weight).flatten(1).to(activations.dtype)
        if method == "layercam":
            return F.conv2d(activations, weight.relu()[:, :, None, None]).relu_()
        positions = activations.shape[-2:].numel()
        alpha = positions * _gradcam_plus_plus(weight, activations.sum((-2, -1)).unsqueeze(1))
        return torch.einsum("nck,nkhw->nchw", alpha, activations).relu_()


def _whole(parameter: Tensor) -> Tensor:
    """The parameter itself; of one that FSDP has spread over processes, all its parts."""
    gather = getattr(parameter, "full_tensor", None)
    return parameter if gather is None else gather()


def _gradcam_plus_plus(grad: Tensor, activation_sum: Tensor) -> Tensor:
    """Chattopadhay et al., Eq. 19: a position's weight for one channel, from its gradient and the channel's sum."""
    square = grad * grad
    denominator = 2 * square + activation_sum * square * grad + 1e-6  # the constant of pytorch-grad-cam
    return grad.relu() * (square / denominator).where(grad != 0, 0)


def _by_autograd(activations: Tensor, logits: Tensor, method: str) -> Tensor:
    scores = logits.sum((0, 2, 3))  # images are independent: the gradient of the sum holds each image's own
    one_hot = torch.eye(scores.numel(), dtype=scores.dtype, device=scores.device)
    maps: list[Tensor] = []
    for chunk in one_hot.split(_CLASSES_PER_BACKWARD):
        (grads,) = torch.autograd.grad(scores, activations, chunk, retain_graph=True, is_grads_batched=True)
        maps.extend(_from_gradient(activations.detach(), grad, method) for grad in grads)
    return torch.stack(maps, 1)


def _from_gradient(activations: Tensor, grad: Tensor, method: str) -> Tensor:
    """One class's maps ``(N, h, w)`` from activations and their gradient, both ``(N, K, h, w)``."""
    if method == "hirescam":
        return (grad * activations).sum(1).relu_()
    if method == "layercam":
        return (grad.relu() * activations).sum(1).relu_()
    if method == "gradcam":
        alpha = grad.mean((-2, -1), keepdim=True)
    else:
        alpha = _gradcam_plus_plus(grad, activations.sum((-2, -1), keepdim=True)).sum((-2, -1), keepdim=True)
    return (alpha * activations).sum(1).relu_()


def _is_pointwise(module: nn.Conv2d) -> bool:
    return (
        module.kernel_size == (1, 1)
        and module.stride == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid", "same")
    )
