"""The common parts of the networks: backbone, decoder, classifier, auxiliary head, and errors about image sizes."""

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
    """Raise a ``ValueError`` unless ``num_classes`` is an integer of at least 1."""
    if not isinstance(num_classes, numbers.Integral) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r} must be an integer of at least 1")


def explained(forward: Callable[[_Module, Tensor], Tensor]) -> Callable[[_Module, Tensor], Tensor]:
    """Decorator of a network's ``forward``: unsuitable images raise a ``ValueError`` that says what to do."""

    @functools.wraps(forward)
    def checked(self: _Module, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (N, 3, H, W), got {tuple(images.shape)}")
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floating point and normalised, got {images.dtype}; see "
                "cawa_fast.recipes.training.loaders.normalize_images"
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
            f"{type(network).__name__} cannot train on a batch of {batch} image of {height}x{width}: where the "
            "image is pooled to one position, batch normalisation would see a single value per channel. Use batches "
            "of at least 2 images; with one image per GPU, use torch.nn.SyncBatchNorm.convert_sync_batchnorm"
        )
    # Try other sizes. If one works, the size is the cause, and the message can name that one.
    for multiple in _MULTIPLES:
        fitting = [-(-side // multiple) * multiple for side in (height, width)]
        if fitting == [height, width]:
            continue
        odd = [3 * multiple, 5 * multiple]  # not divisible by a larger power of two
        if all(_runs(network, forward, images, size) for size in (fitting, odd)):
            return (
                f"{type(network).__name__} cannot take images of {height}x{width} "
                f"({(str(error) or type(error).__name__).splitlines()[0]}). Multiples of {multiple} fit, e.g. "
                f"{fitting[0]}x{fitting[1]}: choose such a crop, and resize or pad the validation images"
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
    """Run one forward pass of a blank image to check its size. It does not change the network.

    Args:
        network: on its device.
        size: H, W of the image.
        batch: images per batch in training. For 1, also check that the network can be trained on single images.

    Raises:
        ValueError: the network cannot take such images; the message says what it can take.
    """
    device = next(network.parameters()).device
    blank = torch.zeros(1, 3, *size, device=device)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        with _evaluating(network):
            network(blank)
        if batch == 1:
            copy.deepcopy(network).train()(blank)


class AuxiliaryHead(nn.Sequential):
    """Logits from an earlier stage, for an auxiliary loss: a 3x3 and a 1x1 convolution.

    Args:
        inputs: channels of the stage.
        num_classes: C.
        channels: channels between the two convolutions.
        dropout: probability of dropping a whole channel before the second convolution.
        kernel: size of the first convolution, odd.
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
    """A network whose forward pass ends with its 1x1 classifier at low resolution.

    Attributes:
        classifier: the 1x1 convolution whose output the network returns.
        auxiliary_logits: ``(N, C, h', w')``, the output of the auxiliary head in the last forward pass in training
            mode, with its graph; None without such a head, in ``eval()`` mode, and in a copy.
        auxiliary_factor: the factor of the auxiliary loss: ``loss + auxiliary_factor * criterion(auxiliary_logits,
            labels)``.
    """

    classifier: nn.Conv2d
    auxiliary_logits: Tensor | None

    def __init__(self, auxiliary_factor: float = 0.0) -> None:
        super().__init__()
        if not 0 <= auxiliary_factor < float("inf"):
            raise ValueError(f"auxiliary={auxiliary_factor} is the factor of a loss; it must be finite and at least 0")
        self.auxiliary_factor = auxiliary_factor
        self.auxiliary_logits = None

    # Tensors with a graph cannot be copied, so that a copy begins without them.
    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "auxiliary_logits": None}


class EncoderDecoder(Network):
    """Backbone, decoder and classifier. In training, an auxiliary head reads the last stage but one of the backbone.

    Args:
        encoder: of segmentation_models_pytorch. Takes images and returns features from the finest, the images
            themselves, to the coarsest.
        decoder: takes the features and returns ``(N, K, h, w)``.
        classifier: 1x1 convolution from K to C channels.
        auxiliary_factor: factor of the auxiliary loss; 0 for no auxiliary head. The head has a quarter of the channels
            of its stage, as in MMSegmentation.
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
        """Logits ``(N, C, h, w)`` of normalised floating-point images ``(N, 3, H, W)``."""
        features = self.encoder(images)
        self.auxiliary_logits = None
        if self.auxiliary is not None and self.training:
            self.auxiliary_logits = self.auxiliary(features[-2])
        return self.classifier(self.decoder(features))
