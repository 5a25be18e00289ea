"""The settings of a training run: defaults, ranges and one line of help for each."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import adaptive, cam, reference, rules
from .._rules import RATIOS, RecallRule, difficulty_weight
from .datasets import DATASETS
from .models import MODELS, WITH_AUXILIARY, build_model

ADAPTIVE = rules.NAMES
"""Weightings that change during training: the rules of :class:`cawa_fast.AdaptiveClassWeights`."""

WEIGHTINGS = (
    *ADAPTIVE,
    "uniform",
    "inverse_frequency",
    "median_frequency",
    "effective_number",
    "enet",
    "log_frequency",
    "power",
    "enet_power",
    "focal",
    "focal_power",
    "dice",
    "seesaw",
    "logit_adjustment",
    "recall_batch",
)

LOSSES = ("ce", "focal", "dice", "jaccard", "tversky", "ce+dice", "focal+tversky", "ohem")
"""Losses that take class weights; ``a+b`` is the sum of both, in one pass."""

LOSSES_OF_THEIR_OWN = ("focal", "focal_power", "dice", "seesaw", "logit_adjustment", "recall_batch")
"""Weightings that say what the loss is."""

PIXEL_SOURCES = ("train", "observed")
"""Values of the setting ``counts``: whose pixels per class enter Eq. 5."""


_OF_BALANCED = ("power", "keep", "strength")

_MOST_PROCESSES = 4096
"""Threads or workers. Beyond, the system ends the process without a message."""


def _setting(default: Any, help: str, choices: tuple[str, ...] | None = None, resume: bool = False) -> Any:
    """A field with its help. ``resume``: it may change when a run is resumed, since no result depends on it."""
    return field(default=default, metadata={"help": help, "choices": choices, "resume": resume})


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run; the defaults are the paper's recipe (appendix A.1) on the built-in dataset.

    Raises:
        ValueError: a setting is out of range; the message names it.
    """

    dataset: str = _setting(
        "street", "Dataset: 'street' draws its images, the others read files from --root.", tuple(sorted(DATASETS))
    )
    root: str | None = _setting(None, "Folder with the dataset's files.", resume=True)
    resize: tuple[int, int] | None = _setting(None, "Resize every image on load, e.g. 180x240 (height x width).")
    model: str = _setting(
        "compact",
        "Network. 'compact' is built in and trains on a CPU; the others need the extra 'models'.",
        tuple(sorted(MODELS)),
    )
    backbone: str | None = _setting(
        None,
        "Backbone of the network, e.g. resnet101, mit_b2, tu-convnext_tiny (from timm); default: the network's own.",
    )
    pretrained: bool = _setting(False, "Start from a backbone trained on ImageNet, downloaded once.")
    auxiliary: float = _setting(
        0.4,
        "deeplabv3plus, ocrnet, upernet: factor of the auxiliary loss; 0: no such loss (ocrnet keeps the head).",
    )
    weighting: str = _setting(
        "balanced",
        "Class weights or loss: balanced, ahead of static weights on unread images (docs/settings.md); cawa, the "
        "paper's; or another one to compare with.",
        WEIGHTINGS,
    )
    loss: str = _setting(
        "ce",
        "Loss, with the class weights of --weighting: cross-entropy, focal, Dice, Jaccard, Tversky (0.3, 0.7), sums of "
        "two, or the cross-entropy of hard pixels.",
        LOSSES,
    )
    epochs: int = _setting(50, "Passes over the training images.")
    batch_size: int = _setting(8, "Images per step.")
    crop: tuple[int, int] | None = _setting(None, "Training crop, e.g. 96x192; default: the image's size.")
    scale: tuple[float, float] = _setting((0.5, 2.0), "Range of the random scale before the crop, e.g. 0.5,2.")
    lr: float = _setting(0.01, "Initial learning rate of SGD; a cosine schedule takes it to 0.")
    momentum: float = _setting(0.9, "Momentum of SGD.")
    weight_decay: float = _setting(1e-4, "Weight decay of SGD.")
    seed: int = _setting(0, "Seed of the initial weights, the order of the images and the augmentation.")
    train_images: int | None = _setting(None, "Number of training images to use; 'street' draws so many.")
    val_images: int | None = _setting(None, "Number of validation images to use; 'street' draws so many.")
    test_split: str | None = _setting(
        None,
        "Images that no rule reads, scored after every epoch: a split, e.g. test, or half: the second half of the "
        "validation images, which then are the first half.",
    )
    delta: float = _setting(0.9, "cawa: share of IoU in the score CSPS; the rest is pixel accuracy.")
    tau: float = _setting(0.5, "cawa: threshold of the pseudo masks.")
    w_min: float = _setting(0.1, "cawa: smallest raw weight.")
    w_max: float = _setting(20.0, "cawa: largest raw weight.")
    source: str = _setting("cam", "cawa: what is scored: activation maps, or the argmax prediction.", adaptive.SOURCES)
    counts: str = _setting(
        "train",
        "cawa: pixels per class in Eq. 5: of the training set, or of the scored validation images.",
        PIXEL_SOURCES,
    )
    ratio: str = _setting("none", "cawa: ratio of the new score to the last one (Eq. 6).", RATIOS)
    normalize: str = _setting("max", "cawa: normalisation of the activation maps.", reference.NORMALIZATIONS)
    classes: str = _setting("present", "cawa: which classes are scored in an image.", reference.CLASSES)
    budget: float | None = _setting(
        None,
        "cawa: score a sample of the validation images: a share of training time (0.02), or at least 2 images.",
    )
    every: int = _setting(1, "cawa: epochs between two updates of the weights.")
    weight_momentum: float = _setting(
        0.0, "cawa: share of earlier steps' counts in a step, in [0, 1); helps small samples."
    )
    cam_method: str = _setting("gradcam", "cawa: method of the activation maps.", cam.METHODS)
    gamma: float = _setting(2.0, "focal, focal_power, and losses with focal: focusing exponent.")
    power: float = _setting(
        0.5,
        "power, focal_power, balanced, decoupled: weights are the pixel share to the power of minus this. enet_power: "
        "power of ENet's weights.",
    )
    keep: float = _setting(0.75, "balanced: part of the weights' pull that the decisions keep, in [0, 1].")
    strength: float = _setting(1.0, "balanced: strength of the correction towards the balance of the classes; 0: none.")
    difficulty_gamma: float | None = _setting(
        None, "difficulty: exponent; default: 1 to 2, growing with the gap between best and worst class."
    )
    logit_tau: float = _setting(1.0, "logit_adjustment: factor of the log prior.")
    allow_outside_root: bool = _setting(
        False, "folder, camvid: let list files name files outside --root, by absolute paths or '..'.", resume=True
    )
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N.", resume=True)
    amp: bool = _setting(False, "Autocast to bfloat16.")
    threads: int | None = _setting(None, "CPU threads; default: one per core.")
    workers: int | None = _setting(None, "DataLoader workers; default: by the number of cores.", resume=True)

    def __post_init__(self) -> None:
        for setting in fields(self):
            check_setting(setting.name, getattr(self, setting.name))
        for setting in fields(self):
            choices, value = setting.metadata["choices"], getattr(self, setting.name)
            if choices and value not in choices:
                raise ValueError(f"{setting.name} must be one of {', '.join(choices)}; got {value!r}")
        if self.loss != "ce" and self.weighting in LOSSES_OF_THEIR_OWN:
            raise ValueError(
                f"loss={self.loss!r} does not go with weighting={self.weighting!r}, which is a loss itself; use "
                "loss='ce', or weighting 'uniform', 'power' or another one of class weights"
            )
        for name in ("epochs", "batch_size", "train_images", "val_images", "threads", "every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        numbers = (
            "lr",
            "momentum",
            "weight_decay",
            "seed",
            "gamma",
            "power",
            "strength",
            "difficulty_gamma",
            "logit_tau",
        )
        for name in (*numbers, "auxiliary"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name in ("crop", "resize"):
            value = getattr(self, name)
            if value is not None and min(value) < 1:
                raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, each at least 1, got {value}")
        if self.test_split is not None and (
            self.test_split in ("train", "val") or re.fullmatch(r"\w[\w.-]*", self.test_split) is None
        ):
            raise ValueError(
                f"test_split must be the name of a split other than train and val, or 'half', got {self.test_split!r}"
            )
        if not 0 <= self.keep <= 1:
            raise ValueError(f"keep must lie in [0, 1], got {self.keep}")
        if self.seed >= 2**63:
            raise ValueError(f"seed must be below 2**63, got {self.seed}")
        if not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(f"scale must be LOW,HIGH with 0 < LOW <= HIGH, finite, got {self.scale}")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
        for name in ("threads", "workers"):
            if (getattr(self, name) or 0) > _MOST_PROCESSES:
                raise ValueError(f"{name} must be at most {_MOST_PROCESSES}, got {getattr(self, name)}")
        if self.budget is not None and not (0 < self.budget < 1 or (self.budget >= 2 and self.budget % 1 == 0)):
            raise ValueError(f"budget must be a share in (0, 1) or a number of images of at least 2, got {self.budget}")
        self.adaptive_weights(num_classes=1)  # raises a ValueError for the arguments of the weights

    def adaptive_weights(self, num_classes: int, **options: Any) -> adaptive.AdaptiveClassWeights:
        """The adaptive weights that these settings describe."""
        return adaptive.AdaptiveClassWeights(num_classes, **self.adaptive_options(), **options)

    def adaptive_options(self) -> dict[str, Any]:
        """The settings that :class:`cawa_fast.AdaptiveClassWeights` takes."""
        options = {
            name: getattr(self, name)
            for name in ("delta", "tau", "w_min", "w_max", "source", "ratio", "normalize", "classes")
        }
        rule: str | RecallRule | rules.Rule = self.weighting if self.weighting in ADAPTIVE else "cawa"
        if rule != "cawa":  # the baselines are defined on predictions
            options["source"] = "argmax"
        if rule == "balanced" and any(getattr(self, name) != getattr(TrainConfig, name) for name in _OF_BALANCED):
            rule = rules.Balanced(self.power, self.keep, self.strength)
        if rule == "decoupled" and self.power != TrainConfig.power:
            rule = rules.Decoupled(self.power)
        if rule == "difficulty":
            rule = functools.partial(difficulty_weight, gamma=self.difficulty_gamma)
        return options | {"momentum": self.weight_momentum, "rule": rule}

    def sample(self) -> float | int | None:
        """``budget`` as :class:`cawa_fast.CAWA` takes it: a share as a float, a number of images as an int."""
        return self.budget if self.budget is None or self.budget < 1 else int(self.budget)

    def network(self, num_classes: int, *, pretrained: bool | None = None) -> nn.Module:
        """The network that these settings describe.

        Args:
            num_classes: C.
            pretrained: overrides the setting. False saves the download where a checkpoint is loaded anyway.

        Raises:
            ValueError, ImportError, OSError: as :func:`cawa_fast.recipes.models.build_model`.
        """
        options: dict[str, Any] = {} if self.backbone is None else {"backbone": self.backbone}
        if self.pretrained if pretrained is None else pretrained:
            options["pretrained"] = True
        if self.model in WITH_AUXILIARY:
            options["auxiliary"] = self.auxiliary
        return build_model(self.model, num_classes, **options)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """The inverse of :meth:`as_dict`; lists become tuples. Unknown names raise a ``ValueError``."""
        if not isinstance(values, dict):
            raise ValueError(f"settings are an object of names and values, got {values!r}")
        known = {setting.name for setting in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown settings {', '.join(unknown)}: was the run made by a newer version?")
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**plain)

    def resolved_device(self) -> torch.device:
        """The device that the setting ``device`` names on this machine.

        Raises:
            ValueError: no such device.
        """
        name = self.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cuda" and "LOCAL_RANK" in os.environ:
            name = f"cuda:{os.environ['LOCAL_RANK']}"  # each process of torchrun has its own GPU
        try:
            device = torch.device(name)
        except RuntimeError:
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}") from None
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device={name!r}, but PyTorch finds no CUDA device; `cawa-fast doctor` says why")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={name!r}, but there are {torch.cuda.device_count()} CUDA devices, from 0")
        return device

    def default_run_dir(self) -> Path:
        """``runs/<dataset>-<model>[-<backbone>]-<weighting>-s<seed>``."""
        network = self.model if self.backbone is None else f"{self.model}-{self.backbone}"
        return Path("runs") / f"{self.dataset}-{network}-{self.weighting}-s{self.seed}"


def check_setting(name: str, value: Any) -> None:
    """Raise a ``ValueError`` if the value of a setting has another type than the setting; other names may have any."""
    setting = next((setting for setting in fields(TrainConfig) if setting.name == name), None)
    if setting is None:
        return
    kind, _, rest = str(setting.type).partition(" | ")
    if not (rest and value is None) and not _KINDS[kind][0](value):
        raise ValueError(f"{name} must be {_KINDS[kind][1]}{' or None' if rest else ''}, got {value!r:.100}")


def _is_whole(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63) or value == 1 << 63


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _are_two(value: Any, each: Callable[[Any], bool]) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(map(each, value))


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_whole, "a whole number"),
    "float": (_is_number, "a number"),
    "str": (lambda value: isinstance(value, (str, os.PathLike)), "a text"),
    "tuple[int, int]": (lambda value: _are_two(value, _is_whole), "two whole numbers"),
    "tuple[float, float]": (lambda value: _are_two(value, _is_number), "two numbers"),
}
"""By the type of a setting: whether a value has it, and its name."""
