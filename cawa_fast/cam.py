r"""Grad-CAM for segmentation networks: in closed form at the classifier, by autograd at any other layer.

Segmentation networks end in a 1x1 convolution :math:`z_c = \sum_k W_{ck} A_k + b_c`. The score of class c is
:math:`y^c = \sum_p z_c(p)`, and its gradient with respect to :math:`A_k` is :math:`W_{ck}` at every position. Grad-CAM
at the input of that convolution is therefore

.. math:: \mathrm{ReLU}\Bigl(\sum_k W_{ck} A_k\Bigr) = \mathrm{ReLU}(z_c - b_c)

up to a positive factor, which every normalisation removes. No backward pass is needed. A bilinear resize after the
classifier changes nothing, because the interpolation weights of an output pixel sum to 1. Larger kernels have a closed
form too, :mod:`cawa_fast._closed_form`.

Shapes in this module: ``N`` images, ``C`` classes, ``K`` channels of the layer, ``(h, w)`` its resolution.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ._classifier import Head, find_classifier, find_logits, is_pointwise, resolve
from ._closed_form import closed_form, from_gradient, needs_weight
from ._listener import Listener
from ._output_check import LayerRun
from ._validate import check_choice

__all__ = ["METHODS", "GradCAM", "closed_form", "find_classifier"]

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

    **Without** ``target_layer`` the maps come in closed form from the layer that computes the logits: a 1x1
    convolution, another one with stride 1 whose zero padding keeps the size of the map, or ``nn.Linear``. This needs no
    backward pass and works under ``no_grad``, ``inference_mode`` and autocast. **With** ``target_layer`` they come from
    autograd, for all classes of a batch from one forward pass. Put the network in ``eval()`` mode first: in training
    mode, batch normalisation makes the images of a batch depend on one another.

    The maps are defined up to a positive factor per class, which every normalisation removes. Grad-CAM++ is the
    exception. It is not linear in the gradient, so the scale of the score matters; in closed form the score is the
    output of the classifier. So it is for ``hirescam`` and ``layercam``, where a resize that gives some positions more
    weight (``align_corners=True``, sizes that are no multiples) changes the maps a little; for ``gradcam`` the score is
    the output of the network.

    Sources: Grad-CAM: Selvaraju et al. 2017; Grad-CAM++: Chattopadhay et al. 2018, Eq. 19; HiResCAM: Draelos and Carin
    2020; LayerCAM: Jiang et al. 2021.

    Args:
        model: the network. Its output is logits ``(N, C, H, W)``, a mapping that holds them as ``"out"`` or
            ``"logits"``, an object that holds them as ``.logits``, or a sequence whose first item they are.
        target_layer: a layer with output ``(N, K, h, w)``, or its dotted name. Default: the input of the classifier.
        classifier: the ``nn.Conv2d`` or ``nn.Linear`` that computes the logits, or its dotted name. Needed if several
            outputs of the network may be the logits. With ``target_layer``, the scores come from the output of
            ``classifier`` if given, otherwise from the output of the network.
        num_classes: ``C``. Restricts the search for the classifier to layers with as many outputs.
        method: ``"gradcam"``, ``"gradcam++"``, ``"hirescam"`` or ``"layercam"``.
        verify: without ``target_layer``, compare the outputs of such layers with what the network returns, and take the
            one that agrees (see :class:`cawa_fast.CAWA`). False: take the last one.

    Raises:
        ValueError: no classifier is found, ``classifier`` does not fit, a name does not exist, or ``method`` is
            unknown. The forward pass raises it if no layer computes what the network returns, or if the
            output of ``target_layer`` or of the network does not fit.
        RuntimeError: ``target_layer`` is used under ``inference_mode`` or ``no_grad``, does not run before the logits,
            or runs several times in a forward pass.

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
        classifier: nn.Module | str | None = None,
        num_classes: int | None = None,
        method: str = "gradcam",
        verify: bool = True,
    ) -> None:
        check_choice("GradCAM", "method", method, METHODS)
        self.model = model
        self.method = method
        self.target_layer = None if target_layer is None else resolve(model, target_layer, "target_layer")
        self._listener: Listener | None = None
        self._scored = model
        if target_layer is None:
            self._listener = Listener("GradCAM", model, num_classes, classifier, verify=verify)
        elif classifier is not None:
            self._scored = find_classifier(model, num_classes, classifier)
        self._record: tuple[Tensor, Tensor] | None = None  # (activations, scores' logits) of the last forward pass
        self._activations: Tensor | None = None
        self._num_classes = num_classes
        self._image_size: tuple[int, ...] | None = None
        self._runs = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._grad_mode: torch.enable_grad | None = None

    @property
    def classifier(self) -> Head | None:
        """The layer at whose input the maps are computed; None with ``target_layer``."""
        return None if self._listener is None else self._listener.candidate.head

    def explain(self) -> str:
        """Which layer computes the logits, and how the network's output follows from it, in words."""
        return f"GradCAM listens to {self.target_layer}." if self._listener is None else self._listener.explain()

    def __enter__(self) -> GradCAM:
        if self._handles:
            raise RuntimeError("GradCAM: this context is entered already; make another GradCAM for a second one")
        if self._listener is not None:
            self._listener.recorder.attach()
            self._handles = [self._listener.recorder.root.register_forward_hook(self._check)]
            return self
        assert self.target_layer is not None
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "GradCAM: target_layer needs gradients, which inference_mode forbids; use torch.no_grad() around the "
                "context instead, or leave target_layer out for the closed form"
            )
        self._handles = [
            self.model.register_forward_pre_hook(self._begin, with_kwargs=True),
            self.target_layer.register_forward_hook(self._record_activations),
            self._scored.register_forward_hook(self._record_scores),
        ]
        self._grad_mode = torch.enable_grad()
        self._grad_mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.recorder.detach()
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
        if self._record is None and (self._listener is None or not self._listener.has_run()):
            raise RuntimeError("GradCAM: no forward pass has run; call model(x) inside `with GradCAM(model) as cam:`")
        if self._listener is not None:
            return maps_at_classifier(self._listener, self._listener.last(), self.method)
        assert self._record is not None
        return _by_autograd(*self._record, self.method)

    def _check(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Raise within the forward pass if no layer computes what the network returns."""
        if self._listener is not None and not torch.compiler.is_compiling() and self._listener.has_run():
            self._listener.last(wait=False)
            self._listener.recorder.drop_graph()

    def _begin(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        images = (value for value in (*inputs, *options.values()) if isinstance(value, Tensor) and value.dim() == 4)
        self._image_size = next((tuple(image.shape[-2:]) for image in images), None)
        self._runs = 0

    def _check_layout(self, what: str, maps: Tensor) -> None:
        """Raise if only the second and third axis have the shape of the images: the channels are then last."""
        if self._image_size is None:
            return
        height, width = self._image_size
        first, middle, last = maps.shape[1:]
        if _distortion(first, middle, height, width) <= 1 and _distortion(middle, last, height, width) > 4:
            raise ValueError(
                f"GradCAM: {what} is {tuple(maps.shape)} for images of {height}x{width}: it seems to have its channels "
                "last, and (N, K, h, w) is needed; choose another layer, or permute it in a module of its own"
            )

    def _record_activations(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"GradCAM: target_layer must output a tensor (N, K, h, w), got {found}; choose another layer"
            )
        self._check_layout("the output of target_layer", output)
        if not torch.is_grad_enabled():
            raise RuntimeError(
                "GradCAM: target_layer needs gradients, but the forward pass runs under no_grad; remove no_grad or put "
                "it around the GradCAM context, or leave target_layer out for the closed form"
            )
        if not output.requires_grad:  # all layers up to here are frozen
            output.requires_grad_()
        # The next layer may modify its input in place, as ReLU(inplace=True) does. It gets a copy.
        self._activations = output
        self._runs += 1
        return output.clone()

    def _record_scores(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._activations is None:
            raise RuntimeError(
                "GradCAM: target_layer did not run before the logits were computed; pass a layer that does"
            )
        if self._runs > 1:
            raise RuntimeError(
                f"GradCAM: target_layer ran {self._runs} times in the forward pass, as a module that is used in "
                "several places does; pass a layer that runs once, such as the block around it"
            )
        logits = find_logits(output)
        if isinstance(self._scored, nn.Linear):  # a classifier over features with their channels last
            logits = logits.movedim(-1, 1)
        self._check_layout("the output of the network", logits)
        if self._num_classes is not None and logits.shape[1] != self._num_classes:
            raise ValueError(
                f"GradCAM: the logits are {tuple(logits.shape)}, but num_classes={self._num_classes}; make them equal"
            )
        self._record = self._activations, logits
        self._activations = None


def maps_at_classifier(listener: Listener, run: LayerRun, method: str) -> Tensor:
    """The maps ``(N, C, h, w)`` of a run of the classifier, by :func:`closed_form`.

    Raises:
        ValueError: the layer is an adapter (LoRA) around the classifier, and the maps need its whole weight; or what
            they are computed from was changed in place.
    """
    candidate = listener.candidates[run.candidate]
    with_weight = needs_weight(candidate.head, method)
    if candidate.layer is not candidate.head and with_weight:
        raise ValueError(
            f"method {method!r} needs the weight of {candidate.name!r}, an adapter around {candidate.head}; use "
            + ("'gradcam' or 'hirescam', which need its output alone" if is_pointwise(candidate.head) else _NO_MAPS)
        )
    which, tensor, version = "output", run.logits, run.version
    if with_weight:
        which, tensor, version = "input", run.activations, run.activations_version
    if version is not None and not tensor.is_inference() and tensor._version != version:
        raise ValueError(
            f"the {which} of {candidate.name!r} was changed in place after the layer, so that the maps are not those "
            f"of its input; change a copy, or use {_NO_MAPS}"
        )
    size, align_corners = listener.resize()
    return closed_form(
        candidate.head, run.activations, run.logits, method, resized_to=size, align_corners=align_corners
    )


_NO_MAPS = "source='argmax', or pass the logits as logits="


def _by_autograd(activations: Tensor, logits: Tensor, method: str) -> Tensor:
    scores = logits.sum((0, 2, 3))  # images are independent: each gets its own gradient
    one_hot = torch.eye(scores.numel(), dtype=scores.dtype, device=scores.device)
    maps: list[Tensor] = []
    for chunk in one_hot.split(_CLASSES_PER_BACKWARD):
        (grads,) = torch.autograd.grad(scores, activations, chunk, retain_graph=True, is_grads_batched=True)
        maps.extend(from_gradient(activations.detach(), grad, method) for grad in grads)
    return torch.stack(maps, 1)


def _distortion(h: int, w: int, height: int, width: int) -> float:
    """By how many positions ``h x w`` differs from the shape of ``height x width`` at some stride."""
    return abs(h * width - w * height) / max(height, width)
