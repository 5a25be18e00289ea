"""Backbones by name, from segmentation_models_pytorch, which includes torchvision's, or from timm."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .libraries import import_library

_LIST = 'python -c "from cawa_fast.recipes.models import backbone_names as b; print(*b(), sep=chr(10))"'


class Backbone(NamedTuple):
    """The arguments for an encoder of segmentation_models_pytorch."""

    name: str
    weights: str | bool | None
    options: dict[str, Any]


def backbone_names() -> list[str]:
    """All names of backbones, sorted. Those that only timm has begin with ``tu-``."""
    encoders = import_library("segmentation_models_pytorch").encoders
    names = {name for name in encoders.get_encoder_names() if _current(name)}
    return sorted(names | {f"tu-{name}" for name in import_library("timm").list_models()})


def find_backbone(name: str, pretrained: bool) -> Backbone:
    """Find a backbone in segmentation_models_pytorch, or else in timm, with or without ``tu-``.

    Raises:
        ValueError: there is no such backbone, or it has no pretrained weights.
    """
    encoders = import_library("segmentation_models_pytorch").encoders.encoders
    timm = import_library("timm")
    if name in encoders and _current(name):
        settings = encoders[name].get("pretrained_settings") or {}
        if pretrained and not settings:
            raise ValueError(f"backbone={name!r} has no pretrained weights; choose another one, or pretrained=False")
        # a few have only weights that their authors trained with more images than ImageNet's
        weights = ("imagenet" if "imagenet" in settings else next(iter(settings))) if pretrained else None
        return Backbone(name, weights, {})
    plain = name.removeprefix("tu-")
    if not timm.is_model(plain):
        raise ValueError(f"backbone={name!r} is unknown. {_suggestions(name)}")
    if pretrained and not timm.models.is_model_pretrained(plain):
        raise ValueError(f"backbone={name!r} has no pretrained weights; choose another one, or pretrained=False")
    # By default Swin refuses image sizes other than that of its training, though its windows can be padded.
    options = {"strict_img_size": False} if plain.startswith(("swin_", "swinv2_")) and "_cr_" not in plain else {}
    return Backbone(f"tu-{plain}", True if pretrained else None, options)


@contextlib.contextmanager
def building(name: str, pretrained: bool, output_stride: int = 32) -> Iterator[None]:
    """Replace errors while the backbone ``name`` is built by ones that say what to do.

    Raises:
        ValueError: it has no stages, or cannot be dilated to ``output_stride``.
        OSError: its pretrained weights cannot be downloaded.
    """
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "downsampling pattern" in reason or "features_only" in reason or "out_indices" in reason:
            raise ValueError(
                f"backbone={name!r} has no stages of strides 4, 8, 16 and 32 ({reason}); choose a hierarchical one, "
                "e.g. resnet50, mit_b0, tu-convnext_tiny or tu-swin_tiny_patch4_window7_224"
            ) from error
        # smp's message has "dilated"; timm rejects the argument, or an assertion without message requires stride 32
        undilated = isinstance(error, AssertionError) or "dilated" in reason or "output_stride" in reason
        if output_stride != 32 and undilated:
            raise ValueError(
                f"backbone={name!r} cannot be dilated to stride {output_stride} ({reason}), which this model needs; "
                "choose a convolutional one, e.g. resnet50 or tu-convnext_tiny, or model 'upernet', which takes any"
            ) from error
        if pretrained and type(error) not in (
            ValueError,
            TypeError,
            KeyError,
            AssertionError,
        ):  # an error of the download
            raise OSError(
                f"the pretrained weights of backbone={name!r} cannot be downloaded ({type(error).__name__}: {reason}). "
                "They need a network connection once; pretrained=False (--no-pretrained) needs none"
            ) from error
        raise


def _current(name: str) -> bool:
    return not name.startswith("timm-")  # deprecated names; the prefix is tu- now


def _suggestions(name: str) -> str:
    names = backbone_names()
    # compared without prefix and punctuation, which users easily get wrong
    plain = {re.sub(r"[^a-z0-9]", "", known.removeprefix("tu-").lower()): known for known in reversed(names)}
    near = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", name.removeprefix("tu-").lower()), plain, n=3, cutoff=0.6)
    meant = f"Did you mean {' or '.join(plain[word] for word in near)}? " if near else ""
    return f"{meant}All names: {_LIST}"
