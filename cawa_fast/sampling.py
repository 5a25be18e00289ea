"""Sampling of validation images for a budget: every class is likely to be in the sample, and every step draws anew.

Shapes in this module: ``N`` images of the validation set, ``C`` classes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler
from torch.utils.data.distributed import DistributedSampler

from . import _validate

_STREAM = 3  # separates these random numbers from others with the same seed
_LEAST = 8
"""Smallest sample, in images. While the budget does not allow as many, the weights stay as they are."""
_SMOOTH = 4
"""Number of steps over which saved time is spent, so that the size of the samples does not swing."""
_GROWTH = 4
"""Largest factor of growth from one step to the next: only the last step tells the cost of an image."""


class HasPresence(Protocol):
    """An index of a dataset that says which image contains which classes.

    :class:`cawa_fast.recipes.datasets.ClassIndex` is one. See :func:`as_presence` for an example.
    """

    @property
    def presence(self) -> Any:
        """``(N, C)`` bool, a tensor or a NumPy array: whether image i contains class c."""


class Rarest(NamedTuple):
    r"""The rarest class of each image. The rarity of a class is measured by the number of images that contain it.

    .. math:: rarity_i = \max_{c \in i} 1 / M_c, \quad M_c \text{ images contain class } c

    Attributes:
        order: ``(N,)`` int64 in ``[0, C]``: rank of the image's rarest class, 0 for the rarest class of all. C for
            images without any class.
        rarity: ``(N,)`` float64 in ``[0, 1]``: as above; 0 for images without any class.

    Example:
        >>> Rarest.of(torch.tensor([[True, False], [True, True], [False, False]]))
        Rarest(order=tensor([1, 0, 2]), rarity=tensor([0.5000, 1.0000, 0.0000], dtype=torch.float64))
    """

    order: Tensor
    rarity: Tensor

    @classmethod
    def of(cls, presence: Tensor) -> Rarest:
        """Compute it from ``presence`` ``(N, C)`` bool: whether image i contains class c."""
        _validate.check_tensor("Rarest.of", "presence", presence, "a tensor (N, C) of bool")
        images, classes = presence.shape
        frequency = presence.sum(0)
        order = torch.full((images,), classes, device=presence.device)
        rarity = torch.zeros(images, dtype=torch.float64, device=presence.device)
        # column by column: an (images, C) table of float64 takes gigabytes for a million images
        for place, index in reversed(list(enumerate(torch.argsort(frequency, stable=True).tolist()))):
            order[presence[:, index]] = place
            rarity[presence[:, index]] = 1 / max(1, int(frequency[index]))
        return cls(order, rarity)


def inclusion_probabilities(rarity: Tensor, size: int) -> Tensor:
    r"""Probability with which each image is drawn, such that ``size`` images are drawn and rare classes are among them.

    .. math:: \pi_i \propto \frac{1}{2N} + \frac{rarity_i}{2 \sum_j rarity_j}, \quad \sum_i \pi_i = size

    Half of the sample is spread evenly over the images, the other half over the classes by :math:`rarity_i`, see
    :class:`Rarest`. If ``size`` is at least twice the number of classes, at least one image of each class is expected
    in the sample. A probability that would exceed 1 is set to 1, and the excess is shared out over the other images.

    Args:
        rarity: ``(N,)`` float64 in ``[0, 1]``, from :class:`Rarest`. All zero: every image gets the same probability.
        size: number of images to draw, in ``[0, N]``.

    Returns:
        ``(N,)`` float64 in ``[0, 1]`` whose sum is ``size``.

    Raises:
        ValueError: ``size`` lies outside ``[0, N]``.

    Example:
        >>> presence = torch.tensor([[True, False], [True, False], [True, False], [True, True]])
        >>> inclusion_probabilities(Rarest.of(presence).rarity, 2)
        tensor([0.3929, 0.3929, 0.3929, 0.8214], dtype=torch.float64)
    """
    _validate.check_tensor(name := "inclusion_probabilities", "rarity", rarity, "a tensor (N,) of float64")
    size = _validate.as_int(name, "size", size, "pass a number of images")
    images = len(rarity)
    if not 0 <= size <= images:
        raise ValueError(f"inclusion_probabilities: size must lie in [0, {images}], got {size}")
    share = torch.full((images,), 1 / max(1, images), dtype=torch.float64, device=rarity.device)
    if bool((rarity > 0).any()):
        share = (share + rarity / rarity.sum()) / 2
    free = torch.ones_like(share, dtype=torch.bool)
    result = torch.zeros_like(share)
    while (left := size - int((~free).sum())) > 0:
        result = torch.where(free, left * share / share[free].sum(), 1.0)
        if not bool((over := free & (result >= 1)).any()):
            break
        free &= ~over
        result = result.clamp_max(1)
    return result


def draw(probability: Tensor, order: Tensor, generator: np.random.Generator) -> Tensor:
    r"""Draw a sample that contains image i with probability ``probability[i]``.

    This is systematic sampling with unequal probabilities over cumulated inclusion probabilities. The images are sorted
    by their rarest class, the rarest first, and randomly within a class. With :math:`S_i` the sum of the probabilities
    up to image i and a random start :math:`u` in ``[0, 1)``, image i is drawn if

    .. math:: S_{i-1} \le u + k < S_i \quad \text{for a } k \in \{0, 1, \dots, n - 1\}

    If the probabilities of the images with the same rarest class sum to at least 1, at least one of these images is
    always drawn (implicit stratification).

    Source: Cochran, Sampling Techniques, 1977, chapters 8 and 9A.

    Args:
        probability: ``(N,)`` float64 in ``[0, 1]``, from :func:`inclusion_probabilities`. Their sum is the whole number
            :math:`n` of images to draw.
        order: ``(N,)`` int64, from :class:`Rarest`.
        generator: source of the random numbers.

    Returns:
        ``(n,)`` int64 in ``[0, N)``: indices of the drawn images, in random order.

    Example:
        >>> probability = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
        >>> sorted(draw(probability, torch.tensor([0, 1, 1]), np.random.default_rng(0)).tolist())
        [0, 2]
    """
    _validate.check_tensor("draw", "probability", probability, "a tensor (N,) of float64")
    _validate.check_tensor("draw", "order", order, "a tensor (N,) of int64")
    if not isinstance(generator, np.random.Generator):
        raise TypeError(
            f"draw: generator must be a numpy.random.Generator, got {_validate.described(generator)}; "
            "pass numpy.random.default_rng(seed)"
        )
    size = round(float(probability.sum()))
    row = np.lexsort((generator.random(len(order)), order.numpy()))
    ends = np.cumsum(probability.numpy()[row])
    points = generator.random() + np.arange(size)
    # Rounding can make the last end a little less than the size.
    places = np.searchsorted(ends, points, side="right").clip(max=len(row) - 1)
    return torch.from_numpy(generator.permutation(row[places]))


def unpadded(sampler: DistributedSampler[Any]) -> Tensor:
    """Which images of a ``DistributedSampler`` are not padding.

    The sampler repeats images of other ranks so that all ranks get equally many. Split this mask into batches as the
    loader does, and pass the parts to ``observe(..., mask=)``, so that no image is counted twice.

    Args:
        sampler: the sampler of this rank.

    Returns:
        ``(len(sampler),)`` bool on the CPU, in the sampler's order: false for padding.

    Example:
        >>> from torch.utils.data import DistributedSampler
        >>> unpadded(DistributedSampler(range(5), num_replicas=2, rank=1, shuffle=False))
        tensor([ True,  True, False])
    """
    if not all(hasattr(sampler, name) for name in ("rank", "num_replicas", "dataset")):
        raise TypeError(
            f"unpadded: sampler must be a DistributedSampler, got {_validate.described(sampler)}; other samplers need "
            "no mask"
        )
    positions = sampler.rank + sampler.num_replicas * torch.arange(len(sampler), device="cpu")
    return positions < len(sampler.dataset)  # type: ignore[arg-type]


class ValidationSampler(Sampler[int]):
    """Sampler of the validation images to observe before the next step. :meth:`cawa_fast.CAWA.sampler` creates it.

    Pass it to the validation loader: ``DataLoader(val_set, batch_size, sampler=sampler)``. Each rank gets its share of
    the sample. Every step draws a new sample, with at most as many images as the budget has time for. Until the next
    :meth:`cawa_fast.CAWA.step`, further passes yield the same images again.

    **Time.** Training time runs from the first forward pass in training mode to the start of a pass over this sampler.
    The time of adaptive weighting runs from there to the end of the step. Both are summed over all steps and all ranks.
    The size of the next sample is chosen such that adaptive weighting stays within ``budget`` times the training time
    in total. A budget in images does not depend on the clock, so that such runs can be repeated bit by bit.

    Args:
        presence: ``(N, C)`` bool, from :func:`as_presence`.
        budget: a float in ``(0, 1)``, the fraction of the training time; or an int of at least 2, the number of images.
        seed: of the draws, at least 0.

    Attributes:
        images: number of images of the validation set.
        budget: as passed.
        seed: as passed.
        size: number of images of the next sample, over all ranks.
        steps: number of samples that were used.
        taken: number of images that this rank has observed in this pass.

    Example:
        >>> sampler = ValidationSampler(torch.ones(10, 2, dtype=torch.bool), budget=4, seed=0)
        >>> len(sampler), len(set(sampler))
        (4, 4)
    """

    def __init__(self, presence: Tensor, budget: float, seed: int) -> None:
        self._rarest = Rarest.of(presence)
        budget = _validate.as_number("ValidationSampler", "budget", budget)
        seed = _validate.as_int("ValidationSampler", "seed", seed, "pass an int of at least 0")
        self.images, self.budget, self.seed = len(presence), budget, seed
        size = budget if isinstance(budget, int) else max(_LEAST, math.ceil(budget * self.images))
        self.size = min(size, self.images)
        self.steps = 0
        self._nanoseconds = [0, 0]
        self._training_began: int | None = None
        self._training = self._late = 0
        self._pass_began: int | None = None
        self._cost = 0.0  # nanoseconds per image: half the last step's, half the earlier value
        self._drawn: tuple[Tensor, Tensor] | None = None
        self.taken = 0

    @property
    def seconds(self) -> tuple[float, float]:
        """``(training, adaptive weighting)`` so far, in seconds, summed over all ranks."""
        return self._nanoseconds[0] / 1e9, self._nanoseconds[1] / 1e9

    def __len__(self) -> int:
        """Number of images of this rank in the next pass."""
        rank, processes = _place()
        return len(range(rank, self.size, processes))

    def __iter__(self) -> Iterator[int]:
        now = time.perf_counter_ns()
        if self._training_began is not None:
            self._training, self._training_began = now - self._training_began, None
        self._pass_began = self._pass_began or now
        self.taken = 0
        rank, processes = _place()
        return iter(self.draw()[0][rank::processes].tolist())

    def draw(self) -> tuple[Tensor, Tensor]:
        """The next sample of all ranks.

        Returns:
            ``(indices, probability)``, ``(n,)`` int64 and ``(n,)`` float64: the images, and the probability with which
            each was drawn.
        """
        if self._drawn is None:
            probability = inclusion_probabilities(self._rarest.rarity, self.size)
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((_STREAM, self.seed, self.steps))))
            indices = draw(probability, self._rarest.order, generator)
            self._drawn = indices, probability[indices]
        return self._drawn

    def train(self) -> None:
        """Start the clock of training, unless it runs. Called at each forward pass in training mode."""
        if self._training_began is None:
            self._training_began = time.perf_counter_ns()

    def take(self, images: int) -> tuple[int, int]:
        """Register that this rank has observed its next ``images`` images.

        Returns:
            ``(first, stride)``: position of the first of them in the sample, and the step to the next one.

        Raises:
            ValueError: the rank has observed more images than its share of the sample has.
        """
        rank, processes = _place()
        first = rank + self.taken * processes
        self.taken += images
        if self.taken > len(self):
            raise ValueError(
                f"observe: this is image {self.taken} of the pass, but the sample has {len(self)}; pass "
                "sampler=cawa.sampler(...) to the validation loader and observe each of its batches once"
            )
        return first, processes

    def times(self) -> tuple[int, int]:
        """``(training, adaptive weighting)`` of this rank since the last step, in nanoseconds."""
        now = time.perf_counter_ns()
        spent = now - self._pass_began if self._pass_began is not None else 0
        return self._training, spent + self._late

    def late(self, nanoseconds: int) -> None:
        """Record the time of the rest of the step, in nanoseconds. It counts for the next step."""
        self._late = nanoseconds

    def stepped(self, times: Sequence[int]) -> None:
        """Finish a step and choose the size of the next sample.

        Args:
            times: ``(training, adaptive weighting)`` since the last step, in nanoseconds, summed over all ranks.
        """
        training, spent = times
        self._nanoseconds[0] += training
        self._nanoseconds[1] += spent
        if self.size:
            cost = spent / self.size
            self._cost = (self._cost + cost) / 2 if self._cost else cost
        if not isinstance(self.budget, int):
            saved = self.budget * self._nanoseconds[0] - self._nanoseconds[1]
            coming = self.budget * training  # the next training is expected to take as long as the last
            size = self._affordable(coming + (saved / _SMOOTH if saved > 0 else saved))
            least = min(_LEAST, self.images)
            if size < least:  # too few: the smallest sample if all saved time pays for it, else none
                size = least if self._affordable(coming + saved) >= least else 0
            self.size = min(size, self.images, _GROWTH * max(self.size, _LEAST))
        self.steps += 1
        self._training, self._pass_began, self._drawn, self.taken = 0, None, None, 0

    def _affordable(self, nanoseconds: float) -> int:
        return max(0, int(nanoseconds / self._cost)) if self._cost else self.images

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs to resume."""
        return {"size": self.size, "steps": self.steps, "nanoseconds": self._nanoseconds, "cost": self._cost}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint: ``state`` comes from :meth:`state`."""
        self.size, self.steps = min(state["size"], self.images), state["steps"]
        self._nanoseconds, self._cost = list(state["nanoseconds"]), state["cost"]


def as_presence(index: Tensor | np.ndarray | HasPresence | int, num_classes: int) -> Tensor:
    """Presence of classes in images, from any form of index.

    Args:
        index: ``(N, C)`` bool, a tensor or a NumPy array; or an object whose ``presence`` is one; or the number of
            images N. With a number, nothing is known about classes, and every image is equally likely to be drawn.
        num_classes: ``C``.

    Returns:
        ``(N, C)`` bool on the CPU.

    Raises:
        ValueError: the shape or the dtype does not fit, or there are no images.

    Example:
        >>> class Index:
        ...     presence = np.array([[True, False], [True, True]])
        >>> as_presence(Index(), 2)
        tensor([[ True, False],
                [ True,  True]])
    """
    if isinstance(index, int) and not isinstance(index, bool):
        presence = torch.zeros(index, num_classes, dtype=torch.bool, device="cpu")
    else:
        try:
            presence = torch.as_tensor(getattr(index, "presence", index)).cpu()
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"sampler: index must be bool of shape (images, {num_classes}), an object with such a presence, or a "
                f"number of images, got {_validate.described(index)}"
            ) from None
    if presence.dim() != 2 or presence.shape[1] != num_classes or presence.dtype != torch.bool:
        raise ValueError(
            f"sampler: index must be bool of shape (images, {num_classes}), true where an image contains a class; "
            f"got {presence.dtype} {tuple(presence.shape)}"
        )
    if not len(presence):
        raise ValueError("sampler: index has no images; pass one row per image of the validation set")
    return presence


def _place() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
