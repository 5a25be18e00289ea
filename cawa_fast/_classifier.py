"""The layers of a network that may compute its logits, and the logits in what it returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor, nn

from ._validate import as_int, described

MAIN_KEYS = ("out", "logits")
"""Keys under which networks return their logits, beside other tensors; the last is also an attribute."""


Head = nn.Conv2d | nn.Linear
"""The layers for which Grad-CAM has a closed form, see :func:`_has_closed_form`."""


class Candidate(NamedTuple):
    """A layer that may compute the logits.

    Attributes:
        name: dotted name of ``layer`` in the network.
        layer: the module whose output the logits may be: ``head``, or an adapter around it (LoRA).
        head: the convolution or linear layer, whose weight and bias the closed form of Grad-CAM needs.
    """

    name: str
    layer: nn.Module
    head: Head

    @property
    def is_auxiliary(self) -> bool:
        return _is_auxiliary(self.name)

    @property
    def num_classes(self) -> int:
        return _outputs(self.head)

    @property
    def has_channels_last(self) -> bool:
        """Whether its input and output are ``(N, h, w, K)`` and ``(N, h, w, C)``."""
        return isinstance(self.head, nn.Linear)


def find_classifier(
    model: nn.Module, num_classes: int | None = None, classifier: nn.Module | str | None = None
) -> Head:
    """The layer that seems to compute the logits: ``classifier``, or the last 1x1 convolution of the network.

    If there is no 1x1 convolution with one group, it is the last of the other layers for which Grad-CAM has a closed
    form: a convolution with stride 1 whose zero padding keeps the size of the map, or ``nn.Linear``.

    "Last" refers to the order of ``model.named_modules()``. Many models define auxiliary heads after the main head. A
    layer is therefore used only as a last resort if a part of its name begins with ``aux``. This is a guess from the
    network's structure. :class:`cawa_fast.CAWA` and :class:`cawa_fast.GradCAM` compare it with the output of the
    network.

    Args:
        model: the network.
        num_classes: ``C``. If given, only layers with as many outputs are considered.
        classifier: such a layer, or its dotted name.

    Returns:
        The ``nn.Conv2d`` or ``nn.Linear``.

    Raises:
        ValueError: there is no such layer, or ``classifier`` is not one, or has another number of outputs.

    Example:
        >>> find_classifier(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1)))
        Conv2d(8, 5, kernel_size=(1, 1), stride=(1, 1))
    """
    return best_guess(find_candidates(model, num_classes, classifier)).head


def find_candidates(
    model: nn.Module, num_classes: int | None = None, classifier: nn.Module | str | None = None
) -> list[Candidate]:
    """The layers that may compute the logits, in the order of ``model.named_modules()``; at least one.

    Without ``num_classes``, those with as many outputs as the layer that :func:`find_classifier` returns.

    Raises:
        ValueError: as :func:`find_classifier`.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 3))
        >>> [candidate.name for candidate in find_candidates(model)]  # the last does not keep the size of the map
        ['0', '1']
    """
    if num_classes is not None:
        num_classes = as_int("find_classifier", "num_classes", num_classes, "pass the number of classes")
    names = {module: name for name, module in _checked(model).named_modules()}
    if classifier is not None:
        layer = resolve(model, classifier, "classifier")
        head: Any = getattr(layer, "base_layer", layer)  # of an adapter of peft
        if not _has_closed_form(head):
            raise ValueError(
                f"classifier must be a 1x1 nn.Conv2d, {_OTHERS}, got {head}; for another kind of layer "
                "pass the logits to CAWA's loss() and observe() as logits=, with source='argmax' unless you mean "
                "Grad-CAM at the logits, or pass a target_layer to GradCAM"
            )
        candidate = _candidate(names.get(layer, "classifier"), layer, head, model)
        if num_classes is not None and candidate.num_classes != num_classes:
            raise ValueError(
                f"classifier has {candidate.num_classes} outputs, but num_classes={num_classes}; make them equal"
            )
        return [candidate]
    found = [
        _candidate(name, module, module, model)
        for module, name in names.items()
        if _has_closed_form(module) and num_classes in (None, _outputs(module)) and not _is_inside_adapter(name, model)
    ]
    if not found:
        outputs = "" if num_classes is None else f" with num_classes={num_classes} outputs"
        raise ValueError(
            f"no 1x1 nn.Conv2d{outputs} in {type(model).__name__}, nor {_OTHERS}; pass the layer as classifier=. "
            f"For a network that ends otherwise, pass the logits yourself: cawa = CAWA(None, "
            f"{num_classes or 'num_classes'}), cawa.loss(labels, logits=z) and cawa.observe(labels, logits=z), with "
            "source='argmax' unless you mean Grad-CAM at the logits. GradCAM takes a target_layer, which works with "
            "any network"
        )
    channels = best_guess(found).num_classes
    return [candidate for candidate in found if candidate.num_classes == channels]


def best_guess(candidates: list[Candidate]) -> Candidate:
    """The last candidate that is not auxiliary, or the last one; 1x1 convolutions first.

    Example:
        >>> heads = [Candidate(name, nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)) for name in ("head", "aux_head.1")]
        >>> best_guess(heads).name
        'head'
    """
    candidates = [candidate for candidate in candidates if not candidate.is_auxiliary] or candidates
    pointwise = [c for c in candidates if is_pointwise(c.head) and not c.has_channels_last and c.head.groups == 1]
    return (pointwise or candidates)[-1]


def _checked(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {described(model)}; pass the network itself, or, where there is "
            "none, CAWA(None, num_classes) and the logits as logits="
        )
    return model


def resolve(model: nn.Module, layer: nn.Module | str, argument: str) -> nn.Module:
    """The module itself, or the submodule of ``model`` with that dotted name.

    Args:
        model: the network.
        layer: a module, or a dotted name as ``model.named_modules()`` lists it.
        argument: name of the argument, for the error message.

    Raises:
        ValueError: ``model`` has no submodule of that name.
        TypeError: ``layer`` is neither.

    Example:
        >>> resolve(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), "1", "target_layer")
        ReLU()
    """
    if isinstance(layer, nn.Module):
        return layer
    if not isinstance(layer, str):
        raise TypeError(f"{argument} must be a module or its dotted name, got {described(layer)}")
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
        >>> import torch
        >>> find_logits({"out": torch.zeros(2, 5, 8, 8)}).shape
        torch.Size([2, 5, 8, 8])
    """
    if isinstance(output, Mapping):
        output = next((output[key] for key in MAIN_KEYS if key in output), output)
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


class Output(NamedTuple):
    """A tensor in what a network returned: ``(N, C, H, W)``, floating.

    Attributes:
        name: how to get it from the output, such as ``output["aux"]``.
        tensor: the tensor.
        is_main: whether it stands where networks return their logits (:func:`find_logits`).
    """

    name: str
    tensor: Tensor
    is_main: bool


def outputs_of(output: Any) -> list[Output]:
    """All maps ``(N, C, H, W)`` in what a network returned, the logits first, if their place is a usual one.

    Args:
        output: a tensor; or tensors in mappings, sequences, dataclasses and objects, nested up to four deep.

    Example:
        >>> import torch
        >>> maps = outputs_of({"aux": torch.zeros(1, 5, 2, 2), "out": torch.zeros(1, 5, 4, 4), "loss": torch.zeros(())})
        >>> [(map.name, map.is_main) for map in maps]
        [("output['out']", True), ("output['aux']", False)]
    """
    try:
        main = find_logits(output)
    except ValueError:
        main = None
    found = [
        Output(name, tensor, tensor is main)
        for name, tensor in _named_tensors(output, "output", 4)
        if tensor.dim() == 4 and tensor.is_floating_point()
    ]
    if main is not None and not any(map.is_main for map in found):  # a property, or an attribute in __slots__
        found.append(Output("output.logits", main, True))
    return sorted(found, key=lambda map: not map.is_main)  # stable


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors in what a network returned.

    Example:
        >>> import torch
        >>> len(tensors_of({"logits": torch.zeros(1, 5, 2, 2), "hidden": (torch.zeros(3), None)}))
        2
    """
    return [tensor for _, tensor in _named_tensors(output, "output", 4)]


def _named_tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
        return
    if depth == 0 or isinstance(value, (str, bytes, nn.Module)):
        return
    parts: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
    elif isinstance(value, (tuple, list)):
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(value)]
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = [(f"{name}.{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        parts = [(f"{name}.{key}", part) for key, part in getattr(value, "__dict__", {}).items()]
    for part_name, part in parts:
        yield from _named_tensors(part, part_name, depth - 1)


def _candidate(name: str, layer: nn.Module, head: Head, model: nn.Module) -> Candidate:
    """The candidate, or the adapter around it, whose output replaces that of the head."""
    parent, _, child = name.rpartition(".")
    if child == "base_layer":
        return Candidate(parent, model.get_submodule(parent), head)
    return Candidate(name, layer, head)


def _is_inside_adapter(name: str, model: nn.Module) -> bool:
    """Whether it is a part of an adapter of peft, such as ``lora_B``, and not the layer that the adapter is around."""
    parts = name.split(".")
    return any(
        hasattr(model.get_submodule(".".join(parts[:end])), "base_layer") and parts[end] != "base_layer"
        for end in range(1, len(parts))
    )


def _is_auxiliary(name: str) -> bool:
    return any(part.startswith("aux") for part in name.split("."))


_OTHERS = (
    "another convolution with stride 1 whose zero padding keeps the size of the map, or an nn.Linear over "
    "channels-last features"
)


def _outputs(head: Head) -> int:
    return head.out_features if isinstance(head, nn.Linear) else head.out_channels


def is_pointwise(head: Head) -> bool:
    """Whether a position of the logits depends on that position of the features alone."""
    return isinstance(head, nn.Linear) or head.kernel_size == (1, 1)


def _has_closed_form(module: nn.Module) -> TypeGuard[Head]:
    """Whether Grad-CAM at the input of the module follows from its weight, and the maps fit the logits."""
    if isinstance(module, nn.Linear):
        return True
    if not isinstance(module, nn.Conv2d) or module.stride != (1, 1):
        return False
    if module.groups > 1 and module.groups == module.in_channels == module.out_channels:
        return False  # a scale of logits, and no classifier
    half = tuple(d * (k - 1) / 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    keeps_size = module.padding in ("same", half)
    if is_pointwise(module):
        return keeps_size or module.padding == "valid"
    # What replaces the forward pass may replace the weight or the padding too.
    plain = type(module).forward is nn.Conv2d.forward and type(module)._conv_forward is nn.Conv2d._conv_forward
    return keeps_size and plain and module.padding_mode == "zeros"
