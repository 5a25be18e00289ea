"""What the files of a run hold, as checks of :mod:`..json_values`: they guard every reader from damaged files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..json_values import Check, anything, fields, flag, listed, number, optional, table, text, whole

_SHARE = number(-1e-6, 1 + 1e-6)  # sums of rounded values may pass 1 by a few bits

RECORD = ("epoch", "train_loss", "miou", "pixel_accuracy", "iou", "csps", "weight", "seconds", "awa_overhead")
"""Keys of every line of ``metrics.jsonl``."""


def record_check(classes: int | None = None) -> Check:
    """The check of a line of ``metrics.jsonl``; ``classes``: C, if it is known."""

    def by_class(check: Check) -> Check:
        return listed(optional(check), classes)

    needed = {
        "epoch": whole(1),
        "train_loss": number(),
        "miou": optional(_SHARE),
        "pixel_accuracy": optional(_SHARE),
        "iou": by_class(_SHARE),
        "csps": by_class(number()),
        "weight": by_class(number(0)),
        "seconds": fields({"total": number(0)}),
        "awa_overhead": number(),
    }
    others = {
        "lr": number(),
        "mean_accuracy": optional(_SHARE),
        "accuracy": by_class(_SHARE),
        "base_weight": optional(by_class(number())),
        "ratio_weight": optional(by_class(number())),
        "csps_error": by_class(number(0)),
        "held": listed(flag, classes),
        "sample_images": optional(whole(0)),
        "offset": by_class(number()),
        "test": fields(
            {"miou": optional(_SHARE), "pixel_accuracy": optional(_SHARE), "iou": by_class(_SHARE)},
            {"mean_accuracy": optional(_SHARE), "accuracy": by_class(_SHARE)},
        ),
    }
    shape, times = fields(needed, others), table(number(0))

    def check(value: Any, where: str) -> None:
        shape(value, where)
        times(value["seconds"], "seconds")

    return check


def check_dataset(value: Any, where: str) -> None:
    """The check of ``dataset.json``, whatever version wrote it, and of ``data`` in a checkpoint."""
    pixels = listed(whole(0))
    parts = {
        "class_names": listed(text),
        "palette": listed(listed(whole(0, 255), 3)),
        "ignore_index": whole(),
        "train_pixels": pixels,
        "val_pixels": pixels,
        "train_images": whole(0),
        "val_images": whole(0),
        "test_pixels": pixels,
        "test_images": whole(0),
        "labels": table(optional(whole(0))),
        "files": fields({"train": text, "val": text}, {"test": text}),
    }
    fields({}, parts)(value, where)
    classes = len(value["class_names"]) if "class_names" in value else None
    for name in ("palette", "train_pixels", "val_pixels", "test_pixels"):
        if classes is not None and name in value and len(value[name]) != classes:
            raise ValueError(f"{name} has {len(value[name])} values, but there are {classes} class_names")
    if classes is not None and any((index or 0) >= classes for index in value.get("labels", {}).values()):
        raise ValueError(f"labels names a class from {classes} on, but there are {classes} class_names")


CONFIG: Check = fields({"dataset": text, "model": text, "weighting": text, "seed": whole(0)})
"""The check of ``config.json`` for a report, which also shows runs of other versions."""

_GROUP = fields({"lr": number(0), "momentum": number(0), "weight_decay": number(0)})

CHECKPOINT: Check = fields(
    {
        "epoch": whole(1),
        "metrics": listed(record_check()),
        "optimizer": fields({"param_groups": listed(_GROUP)}),
        "scheduler": fields({"last_epoch": whole(0), "base_lrs": listed(number(0))}),
    },
    {"settings": table(anything), "data": check_dataset, "versions": table(text)},
)
"""The check of the plain values in ``latest.pt``."""

_RUN = fields(
    {"seed": whole(0), "run": text, "status": text},
    {"error": optional(text)},
)


_BEGUN_ROW = fields(
    {
        **dict.fromkeys(("name", "group", "title"), text),
        "settings": fields({}, {"epochs": whole(1)}),
        "runs": listed(fields({"seed": whole(0), "run": text})),
    }
)

check_begun: Check = fields({"rows": listed(_BEGUN_ROW), "settings": table(anything)})
"""The check of what ``ablate`` reads of an earlier ``ablation.json``."""


def check_ablation(value: Any, swept: Mapping[str, str]) -> None:
    """Check ``ablation.json`` for a report; ``swept``: by group, the numeric setting in which its rows differ."""
    defaults = {setting: number() for setting in swept.values()}
    fields(
        {
            "command": text,
            "settings": fields({"dataset": text, "model": text}, defaults),
            "epochs": whole(0),
            "seeds": listed(whole(0)),
            "against": text,
            "class_names": listed(text),
            "groups": table(text),
        }
    )(value, "")
    classes = len(value["class_names"])
    values = {
        "epochs": whole(0),
        "miou": optional(_SHARE),
        "rare_iou": optional(_SHARE),
        "pixel_accuracy": optional(_SHARE),
        "iou": listed(optional(_SHARE), classes),
        "dead": listed(whole(0, classes - 1)),
        "seconds_per_epoch": number(0),
        "awa_share": optional(number()),
    }
    tested = {
        "test_miou": optional(_SHARE),
        "test_rare_iou": optional(_SHARE),
        "test_pixel_accuracy": optional(_SHARE),
        "test_iou": listed(optional(_SHARE), classes),
    }
    done = fields(values, tested)

    def run(value: Any, where: str) -> None:
        _RUN(value, where)
        if value["status"] == "done":
            done(value, where)

    row = fields(
        {"name": text, "group": text, "title": text, "settings": fields({"weighting": text}), "runs": listed(run)}
    )
    fields(
        {
            "train_pixels": listed(whole(0), classes),
            "rare": fields({"part": number(1e-9, 1), "classes": listed(whole(0, classes - 1))}),
            "rows": listed(row),
        }
    )(value, "")
    for index, entry in enumerate(value["rows"]):
        if (setting := swept.get(entry["group"])) is not None:
            fields({setting: number()})(entry["settings"], f"rows[{index}].settings")
