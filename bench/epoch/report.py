"""The result of ``python -m bench epoch`` as a table, as Markdown and as one picture."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from ..table import aligned, mebibytes, write_bytes, write_text
from .variants import MEANING

Result = dict[str, Any]

PARTS = (
    ("forward", "forward", "#0072B2"),
    ("loss", "loss and its gradient", "#E69F00"),
    ("backward", "backward", "#56B4E9"),
    ("optimizer", "optimizer", "#999999"),
    ("val_forward", "validation: forward", "#009E73"),
    ("val_metric", "validation: metric", "#F0E442"),
    ("awa", "adaptive weights", "#D55E00"),
)
"""Key, text and colour (Okabe and Ito's, which the colour-blind can tell apart) of an epoch's parts."""

MARGINAL_GOAL, MARGINAL_AIM = 0.01, 0.002


def awa(parts: dict[str, float]) -> float:
    """Seconds of adaptive weighting in an epoch."""
    return parts.get("observe", 0.0) + parts.get("step", 0.0)


def percent(value: float | None, digits: int = 1) -> str:
    """With sign and digits; a dash for None."""
    return "–" if value is None else f"{100 * value:+.{digits}f} %"


def spread(values: dict[str, float], digits: int = 1) -> str:
    """Median, and the least and the most of the rounds."""
    least, most = (f"{100 * values[name]:+.{digits}f}" for name in ("least", "most"))
    return f"{percent(values['median'], digits)} ({least} … {most})"


def time(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 180:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 2 * 3600 else f"{seconds / 3600:.3g} h"


COLUMNS = (
    "network",
    "data",
    "a: PyTorch",
    "d: ours",
    "e: ours + CAWA",
    "net (e−a)/a",
    "marginal, by parts",
    "marginal (e−d)/d",
    "c: eager CAWA",
    "b: naive CAWA",
    "MiB a / d / e",
)


def cells(row: Result) -> list[str]:
    """A row of the table."""
    seconds, naive, memory = row["seconds"], row["naive"], row.get("peak_bytes") or {}
    plain = seconds["a"]["total"]
    by_hand = "–"
    if naive is not None:
        by_hand = f"{percent(naive['epoch'] / plain, 0)}; {naive['epoch'] / awa(seconds['e']):.0f}x e's"
    met = "✓" if row["marginal"]["median"] < MARGINAL_GOAL else "✗"
    below = "" if row["classes"] < 19 else " ✓" if row["net"]["median"] < 0 else " ✗"
    return [
        row["network"],
        f"{row['data']}, C={row['classes']}, {'x'.join(map(str, row['crop']))} / {'x'.join(map(str, row['val']))}",
        time(plain),
        time(seconds["d"]["total"]),
        time(seconds["e"]["total"]),
        spread(row["net"]) + below,
        spread(row["marginal"], 2) + " " + met,
        spread(row["marginal_by_difference"], 1),
        percent(row["eager_marginal"]["median"]),
        by_hand,
        " / ".join(mebibytes(memory.get(name)) for name in "ade"),
    ]


def markdown(result: Result, picture: str | None) -> str:
    """The whole result as a page."""
    from ..table import machine_line

    rows, gpu = result["rows"], result["machine"].get("gpu")
    lines = [
        "# What an epoch costs",
        "",
        f"{gpu + '; ' if gpu else ''}{machine_line(result)}. Made by `python -m bench epoch`"
        + (" --quick: a trial, no measurement." if result["quick"] else "."),
        "",
        *([f"**{result['note']}**", ""] if result.get("note") else []),
        aligned(COLUMNS, [cells(row) for row in rows], left=COLUMNS[:2]),
        "",
    ]
    lines += [f"- **{name}**: {text}." for name, text in MEANING.items()]
    lines += [
        "- **net**: a whole epoch with the library and adaptive weights against plain PyTorch without; below 0 is "
        "faster.",
        "- **marginal**: what adaptive weights add, as seconds of `observe` and `step` over the rest of the same "
        "epoch, and as the difference of e and d, which has the noise of two whole epochs. Least … most of the rounds "
        "in brackets.",
        "- **b** is measured on one image and scaled to the validation set: its time as a share of a's epoch, and over "
        "e's.",
        "- **MiB**: what one training and one validation step add at their highest to what was allocated before them.",
        "",
        "Times are of one epoch, training and validation, loading of data left out (the same for all). Two batches of "
        "drawn scenes take turns; all variants compute each batch in turn, and start from the same network. Sizes are "
        "crops / validation images; an epoch has the data set's number of images, and its time is extended from:",
        "",
    ]
    for row in rows:
        what = (
            "all"
            if not row["train_batches"]
            else f"{row['train_batches']} training and {row['val_batches']} validation"
        )
        scale = f", each side 1/{row['scale']} of the data set's" if row["scale"] > 1 else ""
        lines.append(
            f"- {row['network']}, {row['data']}: {what} batches of {row['batch']} and {row['val_batch']}{scale}; "
            f"{row['rounds']} rounds. Plain PyTorch at its best: contiguous logits "
            f"{'yes' if row['choices']['contiguous logits'] else 'no'}, counting class by class "
            f"{'yes' if row['choices']['count present classes alone'] else 'no'}."
        )
    if picture is not None:
        lines += ["", f"![Time of an epoch by part]({picture})"]
    return "\n".join(lines) + "\n"


def rich_table(result: Result) -> Table:
    """The medians, for the console."""
    table = Table(title="Time of an epoch; net: e against a, marginal: what adaptive weights add to ours")
    for name in ("row", "a: PyTorch", "e: ours+CAWA", "net", "marginal", "c adds", "b adds"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for row in result["rows"]:
        plain, naive = row["seconds"]["a"]["total"], row["naive"]
        table.add_row(
            row["key"],
            time(plain),
            time(row["seconds"]["e"]["total"]),
            percent(row["net"]["median"]),
            percent(row["marginal"]["median"], 2),
            percent(row["eager_marginal"]["median"]),
            "–" if naive is None else percent(naive["epoch"] / plain, 0),
        )
    return table


def picture(result: Result) -> bytes:
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
            parts["awa"] = awa(parts)
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
        title = f"{row['network']}, {row['data']}, {row['classes']} classes: {time(whole)} an epoch{more}"
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


def write(result: Result, out: Path) -> None:
    """``out``.json, .md and .png, each whole or not at all."""
    write_text(out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
    write_bytes(out.with_suffix(".png"), picture(result))
    write_text(out.with_suffix(".md"), markdown(result, out.with_suffix(".png").name))
