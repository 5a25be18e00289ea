"""The result of ``python -m bench epoch`` as a page, as tables and as one picture."""

from __future__ import annotations

import io
from typing import Any

from ..table import Column, duration, machine_line, markdown_table, mebibytes, percent, spread
from .variants import MEANING

Found = dict[str, Any]

PARTS = (
    ("forward", "forward", "#0072B2"),
    ("loss", "loss and its gradient", "#E69F00"),
    ("backward", "backward", "#56B4E9"),
    ("optimizer", "optimizer", "#999999"),
    ("val_forward", "validation: forward", "#009E73"),
    ("val_metric", "validation: metric", "#F0E442"),
    ("awa", "adaptive weights", "#D55E00"),
)
"""Key, text and colour of an epoch's parts; the colours are Okabe and Ito's, which the colour-blind can tell apart."""

_MARGINAL_GOAL = 0.01


def adaptive_seconds(parts: dict[str, float]) -> float:
    """Seconds of adaptive weighting in an epoch."""
    return parts.get("observe", 0.0) + parts.get("step", 0.0)


def total(name: str) -> Column:
    """The time of a variant's epoch."""
    titles = {"a": "a: PyTorch", "d": "d: ours", "e": "e: ours + CAWA"}
    return Column(titles[name], lambda row: duration(row["seconds"][name]["total"]))


def _sizes(row: Found) -> str:
    return f"{row['data']}, C={row['classes']}, {'x'.join(map(str, row['crop']))} / {'x'.join(map(str, row['val']))}"


def _net(row: Found) -> str:
    mark = "" if row["classes"] < 19 else " ✓" if row["net"]["median"] < 0 else " ✗"
    return spread(row["net"]) + mark


def _marginal(row: Found) -> str:
    return spread(row["marginal"], 2) + (" ✓" if row["marginal"]["median"] < _MARGINAL_GOAL else " ✗")


def _naive(row: Found) -> str:
    naive, seconds = row["naive"], row["seconds"]
    if naive is None:
        return "–"
    share = percent(naive["epoch"] / seconds["a"]["total"], 0)
    return f"{share}; {naive['epoch'] / adaptive_seconds(seconds['e']):.0f}x e's"


def _peaks(row: Found) -> str:
    return " / ".join(mebibytes((row.get("peak_bytes") or {}).get(name)) for name in "ade")


_EAGER = Column("c: eager CAWA", lambda row: percent(row["eager_marginal"]["median"]))
_BY_HAND = Column("b: naive CAWA", _naive)
COLUMNS = (
    Column("network", lambda row: row["network"], left=True),
    Column("data", _sizes, left=True),
    *map(total, "ade"),
    Column("net (e−a)/a", _net),
    Column("marginal, by parts", _marginal),
    Column("marginal (e−d)/d", lambda row: spread(row["marginal_by_difference"], 1)),
    _EAGER,
    _BY_HAND,
    Column("MiB a / d / e", _peaks),
)
CONSOLE_TITLE = "Time of an epoch; net: e against a, marginal: what adaptive weights add to ours"
CONSOLE_COLUMNS = (
    Column("row", lambda row: row["key"], left=True),
    *map(total, "ae"),
    Column("net", lambda row: percent(row["net"]["median"])),
    Column("marginal", lambda row: percent(row["marginal"]["median"], 2)),
    _EAGER,
    _BY_HAND,
)


def _how_measured(row: Found) -> str:
    counts = f"{row['train_batches']} training and {row['val_batches']} validation"
    scale = f", each side 1/{row['scale']} of the dataset's" if row["scale"] > 1 else ""
    yes = {True: "yes", False: "no"}
    return (
        f"- {row['network']}, {row['data']}: {counts if row['train_batches'] else 'all'} batches of {row['batch']} and "
        f"{row['val_batch']}{scale}; {row['rounds']} rounds. Plain PyTorch at its best: contiguous logits "
        f"{yes[row['choices']['contiguous logits']]}, counting class by class "
        f"{yes[row['choices']['count present classes alone']]}."
    )


def epoch_page(result: Found, picture: str | None) -> str:
    """The whole result as a page; ``picture`` is the name of its file."""
    machine = result["machine"]
    gpu = f"{machine['gpu']}; " if machine.get("gpu") else ""
    trial = " --quick: a trial, no measurement." if result["quick"] else "."
    return "\n".join(
        [
            "# What an epoch costs",
            "",
            f"{gpu}{machine_line(machine)}. Made by `python -m bench epoch`{trial}",
            "",
            *([f"**{result['note']}**", ""] if result.get("note") else []),
            markdown_table(COLUMNS, result["rows"]),
            "",
            *(f"- **{name}**: {text}." for name, text in MEANING.items()),
            "- **net**: a whole epoch with the library and adaptive weights, compared with plain PyTorch without them; "
            "below 0 is faster.",
            "- **marginal**: what adaptive weights add. By parts: the seconds of `observe` and `step` over the rest of "
            "the same epoch. By difference: (e−d)/d, which has the noise of two whole epochs. In brackets the least … "
            "the most of the rounds.",
            "- **b** is measured on one image and scaled to the validation set. The table shows its time as a share "
            "of a's epoch, and as a multiple of e's time for adaptive weights.",
            "- **MiB**: the peak memory that one training and one validation step add.",
            "",
            "Times are of one epoch, training and validation, without data loading, which is the same for all "
            "variants. Two batches of drawn scenes take turns. All variants compute each batch in turn and start from "
            "the same network. Sizes are crops / validation images. An epoch has the dataset's number of images; its "
            "time is extrapolated from:",
            "",
            *map(_how_measured, result["rows"]),
            *(["", f"![Time of an epoch by part]({picture})"] if picture else []),
            "",
        ]
    )


def epoch_picture(result: Found) -> bytes:
    """Stacked bars by part, plain PyTorch's epoch = 100 %, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = result["rows"]
    names = ("a", "c", "d", "e")
    labels = {"a": "PyTorch", "c": "PyTorch + CAWA", "d": "cawa_fast", "e": "cawa_fast + CAWA"}
    figure, axes = plt.subplots(figsize=(11, 1.0 + 1.15 * len(rows)), layout="constrained")
    ticks, texts = [], []
    longest = 0.0
    for place, row in enumerate(rows):
        whole = sum(value for part, value in row["seconds"]["a"].items() if part != "total")
        for index, name in enumerate(names):
            y = place * (len(names) + 1.4) + index
            parts = dict(row["seconds"][name])
            parts["awa"] = adaptive_seconds(parts)
            left = 0.0
            for key, text, colour in PARTS:
                width = 100 * parts.get(key, 0.0) / whole
                axes.barh(y, width, left=left, height=0.86, color=colour, label=text if place == index == 0 else None)
                left += width
            longest = max(longest, left)
            axes.text(left + 0.6, y, f"{left:.0f} %", va="center", fontsize=8)
            ticks.append(y)
            texts.append(labels[name])
        naive = row["naive"]
        more = "" if naive is None else f"; naive CAWA: +{100 * naive['epoch'] / whole:.0f} %"
        title = f"{row['network']}, {row['data']}, {row['classes']} classes: {duration(whole)} an epoch{more}"
        axes.text(0, place * (len(names) + 1.4) - 0.78, title, fontsize=9, fontweight="bold", va="center")
    axes.set_yticks(ticks, texts, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.06)
    axes.axvline(100, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_xlabel("time of an epoch, training and validation, in % of plain PyTorch without adaptive weights")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=len(PARTS), fontsize=8, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()
