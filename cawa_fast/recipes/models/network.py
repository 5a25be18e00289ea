"""What the recipes' networks have in common: backbone, decoder, classifier, auxiliary head, and their complaints."""

from __future__ import annotations

import contextlib
import copy
import functools
import numbers
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

_Module = TypeVar("_Module", bound=nn.Module)
_MULTIPLES = (4, 8, 16, 32, 64, 128, 256)


def check_num_classes(num_classes: int) -> None:
    """Raises ``ValueError`` unless ``num_classes`` is an integer of at least 1."""
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r} must be at least 1, an integer")


def explained(forward: Callable[[_Module, Tensor], Tensor]) -> Callable[[_Module, Tensor], Tensor]:
    """Decorates a network's ``forward``: images that it cannot take raise a ``ValueError`` that says what to do."""

    @functools.wraps(forward)
    def checked(self: _Module, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floating point, normalised, got {images.dtype}; see recipes.loaders.normalize_images"
            )
        if torch.compiler.is_compiling():
            return forward(self, images)
        try:
            return forward(self, images)
        except (torch.OutOfMemoryError, NotImplementedError):
            raise
        except (ValueError, RuntimeError, AssertionError) as error:
            if (advice := _advice(self, forward, images, error)) is None:
                raise
            raise ValueError(advice) from error

    return checked


def _advice(
    network: nn.Module, forward: Callable[[Any, Tensor], Tensor], images: Tensor, error: Exception
) -> str | None:
    batch, _, height, width = images.shape
    if "more than 1 value per channel" in str(error):
        return (
            f"{type(network).__name__} cannot train on a batch of {batch} image of {height}x{width}: one of its batch "
            "normalisations would see a single value per channel (where the image is pooled to one position). Use "
            "batches of at least 2 images; with one image per GPU, torch.nn.SyncBatchNorm.convert_sync_batchnorm"
        )
    # Whether it is the size is found out by trying others: the message then names one that works.
    for multiple in _MULTIPLES:
        fitting = [-(-side // multiple) * multiple for side in (height, width)]
        if fitting == [height, width]:
            continue
        odd = [3 * multiple, 5 * multiple]  # which no larger power of two divides
        if all(_runs(network, forward, images, size) for size in (fitting, odd)):
            return (
                f"{type(network).__name__} cannot take images of {height}x{width} "
                f"({(str(error) or type(error).__name__).splitlines()[0]}). Multiples of {multiple} fit, e.g. "
                f"{fitting[0]}x{fitting[1]}: choose such a crop, and resize or pad what is validated"
            )
    return None


def _runs(network: nn.Module, forward: Callable[[Any, Tensor], Tensor], images: Tensor, size: Any) -> bool:
    try:
        with torch.no_grad(), _evaluating(network):
            forward(network, images.new_zeros(1, 3, *size))
    except (ValueError, RuntimeError, AssertionError):
        return False
    return True


@contextlib.contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def try_size(network: nn.Module, size: tuple[int, int], batch: int | None = None) -> None:
    """One forward pass of a blank image ``(H, W)``, which leaves no trace in the network.

    Args:
        network: on its device.
        size: H, W.
        batch: images at once in training: with 1, also whether the network can be trained on so few.

    Raises:
        ValueError: the network cannot take it; the message says what it can.
    """
    device = next(network.parameters()).device
    blank = torch.zeros(1, 3, *size, device=device)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        with _evaluating(network):
            network(blank)
        if batch == 1:
            copy.deepcopy(network).train()(blank)


class AuxiliaryHead(nn.Sequential):
    """Logits from an earlier stage, for a loss that reaches the backbone on a shorter way: 3x3, 1x1.

    Args:
        inputs: channels of the stage.
        num_classes: C.
        channels: between the two convolutions.
        dropout: of whole channels, in front of the second.
        kernel: size of the first, odd.
    """

    def __init__(self, inputs: int, num_classes: int, channels: int, dropout: float = 0.1, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Dropout2d(dropout),
            nn.Conv2d(channels, num_classes, 1),
        )


class Network(nn.Module):
    """A network whose forward pass ends with its 1x1 classifier, at low resolution.

    Attributes:
        classifier: the 1x1 convolution whose output is what the network returns.
        auxiliary_logits: ``(N, C, h', w')`` of the auxiliary head in the last forward pass in training mode, with their
            graph; None without such a head, in ``eval()`` mode, and in a copy.
        auxiliary_factor: the factor of the auxiliary loss: ``loss + auxiliary_factor * criterion(auxiliary_logits,
            labels)``.
    """

    classifier: nn.Conv2d
    auxiliary_logits: Tensor | None

    def __init__(self, auxiliary_factor: float = 0.0) -> None:
        super().__init__()
        if not 0 <= auxiliary_factor < float("inf"):
            raise ValueError(f"auxiliary={auxiliary_factor} must be finite and at least 0: the factor of a loss")
        self.auxiliary_factor = auxiliary_factor
        self.auxiliary_logits = None

    # A copy has seen no forward pass; tensors with a graph cannot be copied.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "auxiliary_logits": None}


class EncoderDecoder(Network):
    """Backbone, decoder, classifier; the auxiliary head, used only in training, reads the last stage but one.

    Args:
        encoder: of segmentation_models_pytorch: images to features, from the finest (the images) to the coarsest.
        decoder: features to ``(N, K, h, w)``.
        classifier: 1x1, K to C.
        auxiliary_factor: 0 for no auxiliary head. Its width is a quarter of the stage's, as MMSegmentation has it.
    """

    def __init__(self, encoder: Any, decoder: nn.Module, classifier: nn.Conv2d, auxiliary_factor: float = 0.0) -> None:
        super().__init__(auxiliary_factor)
        self.encoder = encoder
        self.decoder = decoder
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary_factor:
            inputs = encoder.out_channels[-2]
            self.auxiliary = AuxiliaryHead(inputs, classifier.out_channels, max(inputs // 4, 16))
        self.classifier = classifier

    @explained
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, C, h, w)`` of images ``(N, 3, H, W)``, floating point, normalised."""
        features = self.encoder(images)
        self.auxiliary_logits = None
        if self.auxiliary is not None and self.training:
            self.auxiliary_logits = self.auxiliary(features[-2])
        return self.classifier(self.decoder(features))
