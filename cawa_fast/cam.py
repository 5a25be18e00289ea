r"""Grad-CAM for segmentation networks: in closed form at the classifier, by autograd at any other layer.

Segmentation networks end in a 1x1 convolution :math:`z_c = \sum_k W_{ck} A_k + b_c`. The score of class c is
:math:`y^c = \sum_p z_c(p)`, and its gradient with respect to :math:`A_k` is :math:`W_{ck}` at every position. Grad-CAM
at the input of that convolution is therefore

.. math:: \mathrm{ReLU}\Bigl(\sum_k W_{ck} A_k\Bigr) = \mathrm{ReLU}(z_c - b_c)

up to a positive factor, which every normalisation removes. No backward pass is needed. A bilinear resize after the
classifier changes nothing, because the interpolation weights of an output pixel sum to 1.

Shapes in this module: ``N`` images, ``C`` classes, ``K`` channels of the layer, ``(h, w)`` its resolution.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

METHODS = ("gradcam", "gradcam++", "hirescam", "layercam")

# Number of classes whose gradients one batched backward pass computes. More are faster, but multiply the memory of the
# activations.
_CLASSES_PER_BACKWARD = 8


class GradCAM:
    r"""Class activation maps of the last forward pass, for all classes and all images of the batch.

    With activations :math:`A_k`, the gradient :math:`G^c_k = \partial \sum_p z_c(p) / \partial A_k` and its mean
    :math:`\alpha^c_k` over the positions:

    .. math::
        \text{gradcam:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k \alpha^c_k A_k\bigr) \\
        \text{hirescam:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k G^c_k A_k\bigr) \\
        \text{layercam:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k \mathrm{ReLU}(G^c_k) A_k\bigr)

    ``gradcam++`` replaces the mean by a weighted sum of :math:`\mathrm{ReLU}(G^c_k)` over the positions.

    **Without** ``target_layer`` the maps come in closed form from the network's last 1x1 classifier. This needs no
    backward pass and works under ``no_grad``, ``inference_mode`` and autocast. **With** ``target_layer`` they come from
    autograd, for all classes of a batch from one forward pass. Put the network in ``eval()`` mode first: in training
    mode, batch normalisation makes the images of a batch depend on one another.

    The maps are defined up to a positive factor per class, which every normalisation removes. Grad-CAM++ is the
    exception. It is not linear in the gradient, so the scale of the score matters; in closed form the score is the
    output of the classifier.

    Sources: Grad-CAM: Selvaraju et al. 2017; Grad-CAM++: Chattopadhay et al. 2018, Eq. 19; HiResCAM: Draelos and Carin
    2020; LayerCAM: Jiang et al. 2021.

    Args:
        model: the network. Its output is logits ``(N, C, H, W)``, a mapping that holds them as ``"out"`` or
            ``"logits"``, an object that holds them as ``.logits``, or a sequence whose first item they are.
        target_layer: a layer with output ``(N, K, h, w)``, or its dotted name. Default: the input of the classifier.
        classifier: the 1x1 ``nn.Conv2d`` that computes the logits, or its dotted name. Needed if the last 1x1
            convolution is not the right one. With ``target_layer``, the scores come from the output of ``classifier``
            if given, otherwise from the output of the network.
        num_classes: ``C``. Restricts the search for the classifier to convolutions with as many outputs.
        method: ``"gradcam"``, ``"gradcam++"``, ``"hirescam"`` or ``"layercam"``.

    Raises:
        ValueError: no classifier is found, ``classifier`` does not fit, a name does not exist, or ``method`` is
            unknown. The forward pass raises it if the classifier that was found does not have the outputs of the
            network, or the output of ``target_layer`` or of the network does not fit.
        RuntimeError: ``target_layer`` is used under ``inference_mode`` or ``no_grad``, or does not run before the
            logits.

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
                "GradCAM: target_layer needs gradients, which inference_mode forbids; use torch.no_grad() around the "
                "context instead, or leave target_layer out for the closed form"
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
        """The maps of the last forward pass.

        Returns:
            ``(N, C, h, w)`` at the resolution of the layer, at least 0, not normalised, in the dtype of the logits or
            of the activations.

        Raises:
            RuntimeError: the network has not run inside the context.
        """
        if self._record is None:
            raise RuntimeError("GradCAM: no forward pass has run; call model(x) inside `with GradCAM(model) as cam:`")
        activations, logits = self._record
        if self.target_layer is None:
            assert self.classifier is not None
            return closed_form(self.classifier, activations, logits, self.method)
        return _by_autograd(activations, logits, self.method)

    def _record_classifier(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._record = inputs[0].detach(), output.detach()

    def _check_guess(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Raise if the 1x1 convolution that was found is not the head: its outputs are then not the classes."""
        assert self.classifier is not None
        try:
            outputs = find_logits(output).shape[1]
        except ValueError:
            return
        if outputs != self.classifier.out_channels:
            raise ValueError(
                f"GradCAM: the last 1x1 convolution has {self.classifier.out_channels} outputs, but the network has "
                f"{outputs}; pass the right one as classifier=, or pass a target_layer"
            )

    def _record_activations(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"GradCAM: target_layer must output a tensor (N, K, h, w), got {found}; choose another layer"
            )
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "GradCAM: target_layer needs gradients, but the forward pass runs under no_grad; remove no_grad or put "
                "it around the GradCAM context, or leave target_layer out for the closed form"
            )
        if not output.requires_grad:  # all layers up to here are frozen
            output.requires_grad_()
        # The next layer may modify its input in place, as ReLU(inplace=True) does. It gets a copy.
        self._activations = output
        return output.clone()

    def _record_scores(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._activations is None:
            raise RuntimeError(
                "GradCAM: target_layer did not run before the logits were computed; pass a layer that does"
            )
        self._record = self._activations, find_logits(output)
        self._activations = None


def find_classifier(
    model: nn.Module, num_classes: int | None = None, classifier: nn.Module | str | None = None
) -> nn.Conv2d:
    """The convolution that computes the logits: ``classifier`` if given, else the last 1x1 convolution of the network.

    "Last" refers to the order of ``model.named_modules()``. Many models define auxiliary heads after the main head. A
    convolution is therefore used only as a last resort if a part of its name begins with ``aux``.

    Args:
        model: the network.
        num_classes: ``C``. If given, only convolutions with as many outputs are considered.
        classifier: a 1x1 ``nn.Conv2d``, or its dotted name.

    Returns:
        The ``nn.Conv2d``: kernel 1x1, stride 1, one group, no padding.

    Raises:
        ValueError: there is no such convolution, or ``classifier`` is not one, or has another number of outputs.

    Example:
        >>> find_classifier(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)))
        Conv2d(8, 5, kernel_size=(1, 1), stride=(1, 1))
    """
    if classifier is not None:
        module = resolve(model, classifier, "classifier")
        if not isinstance(module, nn.Conv2d) or not _is_pointwise(module):
            raise ValueError(
                f"classifier must be a 1x1 nn.Conv2d (stride 1, one group), got {module}; for another kind of layer "
                "pass a target_layer to GradCAM"
            )
        if num_classes is not None and module.out_channels != num_classes:
            raise ValueError(
                f"classifier has {module.out_channels} outputs, but num_classes={num_classes}; make them equal"
            )
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
            f"no 1x1 nn.Conv2d{outputs} in {type(model).__name__}; pass the layer as classifier=, or pass GradCAM a "
            "target_layer, which works with any network"
        )
    return (main or found)[-1][1]


def resolve(model: nn.Module, layer: nn.Module | str, argument: str) -> nn.Module:
    """The module itself, or the submodule of ``model`` with that dotted name.

    Args:
        model: the network.
        layer: a module, or a dotted name as ``model.named_modules()`` lists it.
        argument: name of the argument, for the error message.

    Raises:
        ValueError: ``model`` has no submodule of that name.

    Example:
        >>> resolve(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "1", "target_layer")
        ReLU()
    """
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
    """The logits in the output of a network.

    Args:
        output: the logits, a mapping with the key ``"out"`` or ``"logits"``, an object with the attribute ``.logits``,
            or a tuple or list whose first item they are.

    Returns:
        ``(N, C, H, W)``, any floating dtype.

    Raises:
        ValueError: ``output`` has none of these forms.

    Example:
        >>> find_logits({"out": torch.zeros(2, 5, 8, 8)}).shape
        torch.Size([2, 5, 8, 8])
    """
    if isinstance(output, Mapping):
        output = next((output[key] for key in ("out", "logits") if key in output), output)
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() != 4:
        raise ValueError(
            f"no logits (N, C, H, W) in the network's output of type {type(output).__name__}; pass the "
            "classifier as classifier="
        )
    return output


def closed_form(classifier: nn.Conv2d, activations: Tensor, logits: Tensor, method: str = "gradcam") -> Tensor:
    r"""Activation maps from the input and the output of the 1x1 classifier, without a backward pass.

    With the weights :math:`W` and the bias :math:`b` of the classifier:

    .. math::
        \text{gradcam, hirescam:}\quad & \mathrm{ReLU}(z_c - b_c) \\
        \text{layercam:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k \mathrm{ReLU}(W_{ck}) A_k\bigr) \\
        \text{gradcam++:}\quad & \mathrm{ReLU}\bigl(\textstyle\sum_k \alpha^c_k A_k\bigr), \quad
        \alpha^c_k = h w \, \mathrm{ReLU}(W_{ck}) \frac{W_{ck}^2}{2 W_{ck}^2 + W_{ck}^3 \sum_p A_k(p) + 10^{-6}}

    Sources: as for :class:`GradCAM`.

    Args:
        classifier: the 1x1 convolution.
        activations: its input ``(N, K, h, w)``, any floating dtype.
        logits: its output ``(N, C, h, w)``, any floating dtype.
        method: ``"gradcam"``, ``"gradcam++"``, ``"hirescam"`` or ``"layercam"``.

    Returns:
        ``(N, C, h, w)``, at least 0, not normalised, without a graph. In the dtype of ``logits`` for ``"gradcam"`` and
        ``"hirescam"``, else in that of ``activations``.

    Example:
        >>> classifier = nn.Conv2d(1, 1, 1)
        >>> _ = nn.init.constant_(classifier.weight, 2.0)
        >>> activations = torch.tensor([[[[3.0, -1.0]]]])
        >>> closed_form(classifier, activations, classifier(activations))
        tensor([[[[6., 0.]]]])
    """
    with torch.no_grad():
        if method in ("gradcam", "hirescam"):  # the gradient is W at every position, and so is its mean
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
    """The full parameter: of one that FSDP shards, all shards gathered; of any other, the parameter itself."""
    gather = getattr(parameter, "full_tensor", None)
    return parameter if gather is None else gather()


def _gradcam_plus_plus(grad: Tensor, activation_sum: Tensor) -> Tensor:
    """Weight of each position for one channel, from gradient and sum of activations (Chattopadhay et al., Eq. 19)."""
    square = grad * grad
    denominator = 2 * square + activation_sum * square * grad + 1e-6  # the constant of pytorch-grad-cam
    return grad.relu() * (square / denominator).where(grad != 0, 0)


def _by_autograd(activations: Tensor, logits: Tensor, method: str) -> Tensor:
    scores = logits.sum((0, 2, 3))  # images are independent: each gets its own gradient
    one_hot = torch.eye(scores.numel(), dtype=scores.dtype, device=scores.device)
    maps: list[Tensor] = []
    for chunk in one_hot.split(_CLASSES_PER_BACKWARD):
        (grads,) = torch.autograd.grad(scores, activations, chunk, retain_graph=True, is_grads_batched=True)
        maps.extend(_from_gradient(activations.detach(), grad, method) for grad in grads)
    return torch.stack(maps, 1)


def _from_gradient(activations: Tensor, grad: Tensor, method: str) -> Tensor:
    """Maps ``(N, h, w)`` of one class, from activations and their gradient, both ``(N, K, h, w)``."""
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
