"""The training loop: each epoch trains, validates, scores the classes and computes new weights.

All results depend only on the settings and the content of ``latest.pt``. On the CPU, a run that was killed and resumed
therefore ends with the same bits as one that was not.

Under ``torchrun`` the processes share every batch and the validation images. Losses and weights are those of the whole
batch and of all validation images.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ... import (
    CAWA,
    CombinedLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    LogitAdjustedLoss,
    RecallLoss,
    check_labels,
    weighting,
)
from ..config import ADAPTIVE, TrainConfig
from ..datasets import FileDataset, SegmentationDataset, count_class_pixels
from ..models import Network
from ..models.network import try_size
from ..parallel import cpu_count
from ..runs.data import describe_data
from ..runs.folder import RunFolder
from ..runs.resume import check_data, check_resumed, kept_data, versions
from . import distributed
from .loaders import Loaders, end_workers, normalize_images, open_splits
from .losses import SeesawLoss, weighted_loss
from .metrics_log import log_scalars, metrics_record, numbers, tensorboard
from .signals import SafePoints
from .stopwatch import Stopwatch


class TrainingProgress(Protocol):
    """Callbacks that report the progress of a run. They must return quickly."""

    def prepare(self, what: str, done: int, total: int) -> None:
        """``done`` of ``total`` images of the dataset have been read; ``what`` says which."""

    def begin(self, config: TrainConfig, trainer: Trainer) -> None:
        """Before the first batch."""

    def advance(self, phase: str, epoch: int, images: int) -> None:
        """A batch of ``images`` images is done; ``phase`` is "train" or "validate"."""

    def epoch_done(self, record: dict[str, Any]) -> None:
        """An epoch is done; ``record`` is its line of ``metrics.jsonl``."""


class Trainer:
    """One run: its data, its network, the training loop and the checkpoints.

    ``train_loss`` in a record is the mean over the batches of the epoch of the weighted loss of the network's output.
    It leaves out the loss of an auxiliary head, which is trained too, so that runs with and without one are comparable.

    Args:
        config: the settings.
        folder: the folder of the run. If it holds a checkpoint, the run continues from it.
        progress: callbacks.

    Attributes:
        data: what it is trained on, as in ``dataset.json``.
        notes: sentences for the user about the run that continues.

    Raises:
        ValueError: the settings do not fit the dataset, or the run was begun with other settings or data.
    """

    def __init__(self, config: TrainConfig, folder: RunFolder, progress: TrainingProgress) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.device = config.resolved_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        torch.set_num_threads(config.threads or cpu_count())
        checkpoint = folder.load(tidy=distributed.rank() == 0)
        self.sets = open_splits(config, folder, checkpoint)
        self.train_set, self.val_set, self.test_set = self.sets["train"], self.sets["val"], self.sets.get("test")
        self.data = describe_data(self.train_set, self.val_set, self.test_set)
        self.notes = check_resumed(folder, checkpoint, config, self.data)
        loaders = Loaders(config, self.train_set, self.val_set, self.test_set, pinned=self.device.type == "cuda")
        self.train_loader, self.val_loader, self._train_sampler = loaders.train, loaders.val, loaders.sampler
        self.test_loader = loaders.test
        self.model = self._network()
        if distributed.rank() == 0 and not folder.exists():
            folder.begin(config)  # before the images are read, so that the run can be resumed from here on
        self.pixels = {split: self._count(split, dataset) for split, dataset in self.sets.items()}
        self.train_pixels = self.pixels["train"]
        self.data |= {f"{split}_pixels": pixels.tolist() for split, pixels in self.pixels.items()}
        if checkpoint is not None and (then := kept_data(folder, checkpoint)) is not None:
            check_data(folder, then, self.data, "another --run-dir")  # labels of the same size may have other pixels

        ignore = self.train_set.ignore_index
        self.cawa = CAWA(
            self.model,
            self.train_set.num_classes,
            ignore_index=ignore,
            class_names=self.train_set.class_names,
            class_counts=self.train_pixels if config.counts == "train" else None,
            budget=config.sample(),
            every=config.every,
            method=config.cam_method,
            **config.adaptive_options(),
        )
        # Computes the metrics, for static weights and samples too, and for the test. No loss uses its weights.
        self.validation = CAWA(self.model, self.val_set.num_classes, ignore_index=ignore, source="argmax", metrics=True)
        self.trained: nn.Module = self.model
        if distributed.world_size() > 1:
            self.model, self.trained = distributed.data_parallel(self.model, self.device)
        self.adaptive = config.weighting in ADAPTIVE
        self.sample_loader = loaders.sample(self.cawa, config.seed) if self.adaptive and config.budget else None
        self.criterion = self._criterion(ignore).to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, T_max=config.epochs * len(self.train_loader)
        )
        self.records: list[dict[str, Any]] = []
        self._safe = SafePoints(quiet=distributed.rank() > 0)
        if checkpoint is not None:
            self._restore(checkpoint)

    @property
    def epochs_done(self) -> int:
        return len(self.records)

    def fit(self) -> list[dict[str, Any]]:
        """Train the remaining epochs. Returns the records of all epochs. Ctrl-C takes effect at the end of a batch."""
        with self._safe:
            try:
                return self._fit()
            finally:
                end_workers(self.train_loader, self.val_loader, self.sample_loader, self.test_loader)

    def _fit(self) -> list[dict[str, Any]]:
        self.progress.begin(self.config, self)
        if distributed.rank() > 0:
            for epoch in range(self.epochs_done + 1, self.config.epochs + 1):
                self.records.append(self._epoch(epoch))
            return self.records
        self.folder.describe(self.data)
        with tensorboard(self.folder) as log:
            for record in self.records:  # written again, since a killed process may not have flushed its events
                log_scalars(log, record, self.train_set.class_names)
            for epoch in range(self.epochs_done + 1, self.config.epochs + 1):
                record = self._epoch(epoch)
                self.records.append(record)
                log_scalars(log, record, self.train_set.class_names)
                self.progress.epoch_done(record)
        return self.records

    def _epoch(self, epoch: int) -> dict[str, Any]:
        watch = Stopwatch(self.device)
        # Seeded by the epoch, so that dropout does not depend on earlier epochs and no generator has to be saved.
        torch.manual_seed(
            int(np.random.SeedSequence((self.config.seed, epoch, distributed.rank())).generate_state(1)[0])
        )
        loss = self._train(epoch, watch)
        distributed.average_buffers(self.model)
        due = self.adaptive and self.cawa.due()
        metrics, matrix = self._validate(epoch, watch, observe=due and self.sample_loader is None)
        sampled = None
        if due and self.sample_loader is not None:
            sampled = self._observe_sample(self.sample_loader, watch)
        nothing: list[float | None] = [None] * self.train_set.num_classes
        scores = dict.fromkeys(("csps", "base_weight", "ratio_weight"), nothing)
        if due:
            with watch.part("step"):
                self.cawa.step()
        if self.adaptive:
            scores = {name: numbers(getattr(self.cawa.weights, name)) for name in scores}
        check_labels()  # raises for bad labels met on a GPU, which has been synchronised by now
        seconds = watch.seconds()
        # After the weights, which do not depend on it, and after the times, which are those of an epoch without it.
        tested = {} if self.test_loader is None else {"test": self._test(epoch, self.test_loader)}
        awa = sum(seconds.get(part, 0.0) for part in ("sample_data", "sample_forward", "observe", "step"))
        record = {
            "epoch": epoch,
            "train_loss": loss,
            "lr": self.scheduler.get_last_lr()[0],
            **metrics,
            **tested,
            **scores,
            "weight": numbers(self._current_weight()),
            **(
                {"offset": numbers(self.cawa.weights.offset)} if self.adaptive and self.cawa.weights.sets_offset else {}
            ),
            "sample_images": sampled,
            "csps_error": numbers(self.cawa.weights.standard_error) if sampled else nothing,
            "held": self.cawa.weights.held.tolist() if sampled else [False] * self.train_set.num_classes,
            "seconds": seconds,
            "awa_overhead": awa / (seconds["total"] - awa),
        }
        self._save(record, matrix)
        return record

    def _train(self, epoch: int, watch: Stopwatch) -> float:
        self.model.train()
        self._train_sampler.set_epoch(epoch)
        ignore, classes = self.train_set.ignore_index, self.train_set.num_classes
        together = distributed.world_size() > 1
        total, batches = torch.zeros(2, device=self.device)
        for images, labels in self._batches(self.train_loader, watch, "data"):
            with watch.part("forward"), self._autocast():
                self.trained(images)
            with watch.part("loss"):
                auxiliary = getattr(self.model, "auxiliary_logits", None)
                # the auxiliary loss first: some criteria keep the weights of the last call, which shall be the main one
                extra = 0 if auxiliary is None else self.config.auxiliary * self.criterion(auxiliary, labels)
                loss = self.criterion(self.cawa.logits, labels)
                objective = loss + extra
                labelled = (labels != ignore).any()
                if together:
                    weight = None if self._averages_pixels() else self._current_weight()
                    own, (factor, labelled) = labelled, distributed.share_of_mean(labels, weight, classes, ignore)
                    loss, objective = (part.where(own, 0) * factor for part in (loss, objective))
            with watch.part("backward"):
                self.optimizer.zero_grad()
                objective.backward()
            with watch.part("optimizer"):
                self.optimizer.step()
                self.scheduler.step()
            # No .item() here, which would wait for the device. Without labelled pixels the loss is NaN and has no
            # gradient.
            total += loss.detach().where(labelled, 0)
            batches += labelled
            self.progress.advance("train", epoch, len(images) * distributed.world_size())
        distributed.sum_over_processes(total)
        mean = (total / distributed.world_size() / batches.clamp_min(1)).item()
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the training loss of epoch {epoch} is {mean}; a smaller --lr (now {self.config.lr}) usually helps. "
                f"The checkpoint of epoch {epoch - 1} is untouched"
            )
        return mean

    @torch.no_grad()
    def _validate(self, epoch: int, watch: Stopwatch, observe: bool) -> tuple[dict[str, Any], Tensor]:
        """Metrics and confusion matrix of the validation set. ``observe``: score the classes for new weights, too."""
        self.model.eval()
        scores, predictions = self.cawa.weights, self.validation.weights
        for images, labels in self._batches(self.val_loader, watch, "val_data"):
            with watch.part("val_forward"), self._autocast():
                self.model(images)
            with watch.part("val_metric"):
                self.validation.observe(labels)
            if observe and scores.source == "cam":
                with watch.part("observe"):
                    self.cawa.observe(labels)
            self.progress.advance("validate", epoch, len(images) * distributed.world_size())
        assert predictions.confusion is not None
        if observe and scores.source == "argmax":  # the confusion matrix has all that these scores need
            with watch.part("observe"):
                scores.observe_confusion(predictions.confusion)
        with watch.part("val_metric"):
            self.validation.step()
        assert predictions.metrics is not None
        assert predictions.last_confusion is not None
        return metrics_record(predictions.metrics), predictions.last_confusion.cpu()

    @torch.no_grad()
    def _test(self, epoch: int, loader: DataLoader[Any]) -> dict[str, Any]:
        """The metrics of the test images, which nothing else in the run reads."""
        self.model.eval()
        for images, labels in self._batches(loader, Stopwatch(self.device), "test_data"):
            with self._autocast():
                self.model(images)
            self.validation.observe(labels)
            self.progress.advance("validate", epoch, len(images) * distributed.world_size())
        self.validation.step()
        assert self.validation.weights.metrics is not None
        return metrics_record(self.validation.weights.metrics)

    @torch.no_grad()
    def _observe_sample(self, loader: DataLoader[Any], watch: Stopwatch) -> int:
        """A separate pass that scores a sample of the validation images. Returns the size of the sample."""
        for images, labels in self._batches(loader, watch, "sample_data"):
            with watch.part("sample_forward"), self._autocast():
                self.model(images)
            with watch.part("observe"):
                self.cawa.observe(labels)
        return loader.sampler.size  # type: ignore[attr-defined]

    def _batches(self, loader: DataLoader[Any], watch: Stopwatch, part: str) -> Iterator[tuple[Tensor, Tensor]]:
        batches = iter(loader)
        for _ in range(len(loader)):
            self._safe.reached()
            with watch.part(part, host=True):
                images, labels = next(batches)
            with watch.part(part):
                images = normalize_images(images.to(self.device, non_blocking=True))
                labels = labels.to(self.device, non_blocking=True)
            yield images, labels

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp)

    def _network(self) -> nn.Module:
        """The network on its device. A trial forward pass raises here if the network cannot take the image sizes."""
        config = self.config
        torch.manual_seed(config.seed)
        # a checkpoint has all weights, so that none need be downloaded
        network = config.network(
            self.train_set.num_classes, pretrained=config.pretrained and not self.folder.latest.exists()
        )
        # oneDNN and cuDNN are fastest in the layout channels_last
        network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if isinstance(network, Network):
            crop = config.crop or self.train_set.image_size
            assert crop is not None  # Loaders has checked that
            # the batch that batch normalisation sees: SyncBatchNorm on CUDA sees that of all processes
            batch = config.batch_size // (1 if self.device.type == "cuda" else distributed.world_size())
            try_size(network, crop, batch=batch)
            # for images that differ in size, odd sides stand for any
            try_size(network, self.val_set.image_size or (crop[0] | 1, crop[1] | 1))
        return network

    def _count(self, split: str, dataset: SegmentationDataset) -> Tensor:
        """Pixels per class. Reads all labels, and all images that fit into memory, so that broken files raise here."""
        first = distributed.rank() == 0
        # Where images do not fit into memory, rank 0 reads the label files and the others read the statistics it keeps.
        alone = isinstance(dataset, FileDataset) and not dataset.fits_cache
        if alone and not first:
            distributed.barrier()
        class_pixels = count_class_pixels(dataset, functools.partial(self.progress.prepare, f"{split} images"))
        if alone and first:
            distributed.barrier()
        if not class_pixels.any():
            raise ValueError(f"no image of the split {split!r} of {self.config.dataset} has a labelled pixel")
        return class_pixels

    def _criterion(self, ignore_index: int) -> Any:
        name, power = self.config.weighting, self.config.power
        if self.adaptive and self.config.loss == "ce":
            return self.cawa.criterion
        if self.adaptive:
            return weighted_loss(self.config.loss, self.cawa.weights, self.config.gamma, ignore_index)
        if name in ("focal", "focal_power"):
            weight = weighting.power(self.train_pixels, power) if name == "focal_power" else None
            return FocalLoss(self.config.gamma, weight, ignore_index)
        if name == "dice":
            return CombinedLoss(
                CrossEntropyLoss(ignore_index=ignore_index), DiceLoss(ignore_index=ignore_index, smooth=1.0)
            )
        if name == "seesaw":
            return SeesawLoss(self.train_pixels, ignore_index)
        if name == "logit_adjustment":
            return LogitAdjustedLoss(self.train_pixels, self.config.logit_tau, ignore_index=ignore_index)
        if name == "recall_batch":
            return RecallLoss(ignore_index)
        exponent = {"gamma": power} if name in ("power", "enet_power") else {}
        weight = getattr(weighting, name)(self.train_pixels, **exponent)
        return weighted_loss(self.config.loss, weight, self.config.gamma, ignore_index)

    def _current_weight(self) -> Tensor:
        if self.adaptive:
            return self.cawa.weight
        weight = self._static_weight()
        return torch.ones(self.train_set.num_classes) if weight is None else weight

    def _static_weight(self) -> Tensor | None:
        criterion: Any = self.criterion
        if isinstance(criterion, CombinedLoss):
            criterion = criterion.pixel_loss
        weight: Tensor | None = criterion.weight
        return weight

    def _averages_pixels(self) -> bool:
        """Whether the loss divides by the number of pixels, rather than by the sum of their weights."""
        if isinstance(self.criterion, RecallLoss) or self.config.loss in ("dice", "jaccard", "tversky"):
            return True
        return not self.adaptive and self._static_weight() is None

    def _save(self, record: dict[str, Any], matrix: Tensor) -> None:
        if distributed.rank() > 0:
            return
        best = all(record["miou"] > earlier["miou"] for earlier in self.records)
        checkpoint = {
            "epoch": record["epoch"],
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "weights": self.cawa.weights.state_dict(),
            "loop": self.cawa.get_extra_state(),
            "metrics": [*self.records, record],
            "confusion": matrix,
            "settings": self.config.as_dict(),
            "data": self.data,
            "versions": versions(),
        }
        self.folder.save(checkpoint, best=best)

    def _restore(self, checkpoint: dict[str, Any]) -> None:
        try:
            self.model.load_state_dict(checkpoint["model"])
            self.optimizer.load_state_dict(checkpoint["optimizer"])
            for parameter, state in self.optimizer.state.items():  # which PyTorch does not compare
                if (momentum := state.get("momentum_buffer")) is not None and momentum.shape != parameter.shape:
                    raise ValueError(f"the momentum has the shape {[*momentum.shape]}, not {[*parameter.shape]}")
            known = self.scheduler.state_dict()  # PyTorch would take other names too, even those of methods
            self.scheduler.load_state_dict({k: v for k, v in checkpoint["scheduler"].items() if k in known})
            self.cawa.weights.load_state_dict(checkpoint["weights"])
            self.cawa.set_extra_state(checkpoint["loop"])
        except Exception as error:  # states of other objects make PyTorch raise anything
            network = f"model={self.config.model!r} and {self.train_set.num_classes} classes"
            raise self.folder.refuse(error, network) from error
        self.records = checkpoint["metrics"]
        if distributed.rank() == 0:
            self.folder.write_results(checkpoint)
