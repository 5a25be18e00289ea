"""A program for torchrun: trains with CawaTrainer, and writes what each step logged to ``results.json``.

Arguments: a folder, then trainings, such as ``UperNet:3:1:static``: the arguments of :func:`trained`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import cawa_fast as cf
from tests.support.hf_networks import integration, tiny, transformers, without_randomness
from tests.support.scenes import CLASSES, scenes

WEIGHT = torch.linspace(0.2, 1.8, CLASSES)


def data(count: int) -> list[dict[str, Any]]:
    return [{"pixel_values": image, "labels": label} for image, label in scenes(count)]


def cawa_of(model: torch.nn.Module) -> cf.CAWA:
    cawa = cf.CAWA(model, CLASSES, ignore_index=255, metrics=True)
    cawa.weight.copy_(WEIGHT)
    return cawa


def arguments(folder: str | Path, **options: Any) -> transformers.TrainingArguments:
    defaults: dict[str, Any] = {
        "num_train_epochs": 2,
        "eval_strategy": "epoch",
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "per_device_eval_batch_size": 2,
    }
    return transformers.TrainingArguments(str(folder), **defaults | options)


def trained(folder: str | Path, network: str, batch: int, steps: int, *options: str) -> dict[str, Any]:
    """Train on 12 images, evaluate 5 after each epoch, and return what the main process knows.

    Args:
        batch, steps: images per process and batch; batches per step of the optimiser.
        options: ``"static"``: a static graph; ``"find"``: DDP looks for unused parameters; ``"own"``: the Trainer does
            not multiply the loss by the number of processes.
    """
    args = arguments(
        folder,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps,
        ddp_static_graph="static" in options,
        ddp_find_unused_parameters=None if "find" in options else False,
        average_tokens_across_devices="own" not in options,
        train_sampling_strategy="sequential",
    )
    model = without_randomness(tiny(network, CLASSES))
    trainer = integration.CawaTrainer(model, args, train_dataset=data(12), eval_dataset=data(5), cawa=cawa_of(model))
    trainer.train()
    weights = trainer.cawa.weights
    result = {"log": trainer.state.log_history, "history": weights.history}
    result["predicted"] = trainer.predict(data(5)).metrics
    return result | {"counts": int(weights.counts.sum()), "steps": len(weights.history), "scored": weights.iou.tolist()}


def main() -> None:
    torch.set_num_threads(1)
    folder, results = sys.argv[1], {}
    for words in sys.argv[2:]:
        network, batch, steps, *options = words.split(":")
        results[words] = trained(folder, network, int(batch), int(steps), *options)
    if int(os.environ["RANK"]) == 0:
        Path(folder, "results.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
