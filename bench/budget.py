"""``python -m bench budget``: how wrong are scores from a part of the validation set, up to a million images?

Populations are made up (:mod:`bench.population`): 150 classes, the commonest in nine of ten images, the rarest in one
of five hundred. Each sample size is drawn many times, with the sampler's probabilities and, for comparison, evenly; the
root-mean-square error of CSPS is that against the whole population.
"""

from __future__ import annotations

import io
import json
import statistics
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from cawa_fast.estimation import estimate
from cawa_fast.sampling import draw, inclusion_probabilities

from . import table
from .population import Population, scores

CLASSES = 150
SIZES = (50, 100, 200, 500, 1000, 2000, 5000)
IMAGES = (1_000, 10_000, 100_000, 1_000_000)
DELTA, MAX_ERROR = 0.9, 0.1
OUT = table.ROOT / "bench" / "results" / "budget-simulation"


def simulate(population: Population, size: int, draws: int, even: bool, seed: int) -> dict[str, Any]:
    """Errors of one sample size: by class the real one and the stated one, how often the class is missed, or held."""
    rarest = population.rarest
    rarity = torch.zeros_like(rarest.rarity) if even else rarest.rarity
    order = torch.zeros_like(rarest.order) if even else rarest.order
    probability = inclusion_probabilities(rarity, size)
    truth = scores(population.totals(), DELTA)
    off, stated = [], []
    for turn in range(draws):
        drawn = draw(probability, order, np.random.default_rng((seed, turn)))
        counts, error = estimate(population.rows(drawn), probability[drawn], DELTA)
        off.append(scores(counts, DELTA) - truth)
        stated.append(error)
    return summary(torch.stack(off), torch.stack(stated))


def summary(off: Tensor, stated: Tensor) -> dict[str, Any]:
    """Of draws by classes ``(draws, C)``, commonest first: medians over the common, the middle, the rare third."""
    missed, held = stated.isnan(), ~(stated <= MAX_ERROR)
    # an unseen class keeps its score: what counts is the error of those that are used
    used = torch.where(held, torch.nan, off)
    rmse = off.square().nanmean(0).sqrt()
    claimed = stated.square().nanmean(0).sqrt()
    found: dict[str, Any] = {}
    for name, part in zip(("common", "middle", "rare"), torch.arange(off.shape[1]).tensor_split(3), strict=True):
        found[name] = {
            "error": rmse[part].nanmedian().item(),
            "stated": claimed[part].nanmedian().item(),
            "error_of_used": used[:, part].square().nanmean().sqrt().item(),
            "missed": missed[:, part].float().mean().item(),
            "held": held[:, part].float().mean().item(),
        }
    return found


@click.command()
@click.option("--draws", type=click.IntRange(2), default=40, show_default=True, help="Samples of each size.")
@click.option(
    "--images",
    default=",".join(map(str, IMAGES)),
    show_default=True,
    help="Sizes of the validation set, comma-separated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    default=OUT,
    show_default="bench/results/budget-simulation",
    help="Results, without ending: .json, .md and .png are written.",
)
def budget(draws: int, images: str, out: Path) -> None:
    """Errors of class scores from samples of a validation set, by size of sample and set; about ten minutes."""
    try:
        sizes = [int(text) for text in images.split(",")]
    except ValueError:
        raise click.BadParameter(
            f"{images!r} is not a list of numbers, e.g. 1000,100000", param_hint="--images"
        ) from None
    console = Console()
    rows: list[dict[str, Any]] = []
    jobs = [(total, size, even) for total in sizes for size in SIZES if size < total for even in (False, True)]
    population: Population | None = None
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("samples", total=len(jobs))
        for total, size, even in jobs:
            if population is None or population.images != total:
                population = Population.make(total, CLASSES, seed=total)
            found = simulate(population, size, draws, even, seed=size)
            rows.append({"images": total, "sample": size, "even": even} | found)
            progress.advance(task)
    result = {"benchmark": "budget", "classes": CLASSES, "draws": draws, "delta": DELTA, "rows": rows}
    write(result, out)
    console.print(f"Written: {out}.md, .json, .png", highlight=False)


COLUMNS = (
    "images",
    "sample",
    "error, common",
    "middle",
    "rare",
    "stated / real",
    "rare classes held",
    "of the used",
    "even draw: error, rare",
    "rare classes missed",
)


def cells(row: dict[str, Any], even: dict[str, Any]) -> list[str]:
    """A row of the table, with the even draw of the same size beside it."""
    parts = [row[part] for part in ("common", "middle", "rare")]
    # (a class all of whose images are drawn has no error)
    honesty = statistics.median(part["stated"] / part["error"] for part in parts if part["error"] > 0)
    used = row["rare"]["error_of_used"]
    return [
        f"{row['images']:,}",
        f"{row['sample']:,}",
        *(f"{row[part]['error']:.3f}" for part in ("common", "middle", "rare")),
        f"{honesty:.2f}",
        f"{100 * row['rare']['held']:.0f} %",
        "–" if used != used else f"{used:.3f}",
        f"{even['rare']['error']:.3f}",
        f"{100 * even['rare']['missed']:.0f} %",
    ]


def markdown(result: dict[str, Any], picture: str) -> str:
    """The page."""
    rows = result["rows"]
    pairs = [
        (row, next(e for e in rows if e["even"] and (e["images"], e["sample"]) == (row["images"], row["sample"])))
        for row in rows
        if not row["even"]
    ]
    rows_of_table = table.aligned(COLUMNS, [cells(*pair) for pair in pairs], left=())
    return _PAGE.format(table=rows_of_table, picture=picture, error=MAX_ERROR, **result)


_PAGE = """# Scores from a part of the validation set

Made by `python -m bench budget`: {classes} made-up classes in 90 % to 0.2 % of the images, {draws} samples of each
size. Root-mean-square error of CSPS (in [0, 1]); medians over the common, the middle and the rare third of the classes.

{table}

- **stated / real**: the standard error that the user sees, over the real one; 1 is honest.
- **held**: the standard error is above max_error = {error}, or the class is not in the sample: it keeps its weight.
  **of the used**: the error of the others.
- **even draw**: every image as likely, as in a plain random subset; the error of the rare classes that are in it, and
  how many are not.

On paper: the estimate of a class is a mean over the *m* images of the sample that have it. So its error is
`s / sqrt(m)`, with the spread *s* of the class from image to image, and it does not depend on how large the set is. One
half of a sample of *n* images is spread over the classes by rarity: each of C classes is in about `n / 2C` of them at
least, however rare, where an even draw has `n * share`. The columns hardly change from a thousand images to a million;
only where a sample has all images of a rare class (few images in all) is its error less.

![Error against sample size]({picture})
"""


def picture(result: dict[str, Any]) -> bytes:
    """Error against sample size, one panel for the common and one for the rare classes, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = ("#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#999999")
    totals = sorted({row["images"] for row in result["rows"]})
    figure, panels = plt.subplots(1, 3, figsize=(12, 4), layout="constrained", sharex=True)
    for total, colour in zip(totals, colours, strict=False):
        for even, style in ((False, "-"), (True, ":")):
            rows = [row for row in result["rows"] if row["images"] == total and row["even"] == even]
            x = [row["sample"] for row in rows]
            label = f"{total:,} images" + (", even draw" if even else "")
            for panel, part in zip(panels, ("common", "rare"), strict=False):
                y = [row[part]["error"] or None for row in rows]  # all images of a class are drawn: no error
                panel.loglog(x, y, style, color=colour, marker="o" if not even else None, markersize=3, label=label)
            panels[2].semilogx(x, [100 * row["rare"]["held"] for row in rows], style, color=colour, markersize=3)
    for panel, title in zip(
        panels,
        ("common third of the classes", "rare third (those seen)", f"rare third: error above {MAX_ERROR}, or unseen"),
        strict=True,
    ):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("images in the sample")
        panel.grid(alpha=0.3, which="both", linewidth=0.5)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[:2]:
        panel.set_ylim(0.005, 0.3)
        panel.set_yticks([0.01, 0.02, 0.05, 0.1, 0.2], ["0.01", "0.02", "0.05", "0.1", "0.2"])
        panel.minorticks_off()
    panels[0].set_ylabel("root-mean-square error of CSPS")
    panels[2].set_ylabel("% of these classes")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return buffer.getvalue()


def write(result: dict[str, Any], out: Path) -> None:
    """``out``.json, .md, .png."""
    table.write_text(Path(f"{out}.json"), json.dumps(result, indent=1) + "\n")
    table.write_bytes(Path(f"{out}.png"), picture(result))
    table.write_text(Path(f"{out}.md"), markdown(result, f"{out.name}.png"))
