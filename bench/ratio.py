"""Which ``ratio`` and ``source`` should be the default: `cawa-fast train` over several seeds, compared.

    python -m bench.ratio --dataset camvid --root CamVid --resize 180x240 --epochs 40 --lr 0.05 --seeds 0,1

Rows run side by side, one thread each; one that is done is not run again. Writes ``<out>.json`` and ``<out>.md``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch
from rich.progress import Progress

ROWS = {
    "uniform": ["--weighting", "uniform"],
    "log_frequency": ["--weighting", "log_frequency"],
    "paper, cam": ["--ratio", "paper", "--source", "cam"],
    "smoothed, cam": ["--ratio", "smoothed", "--source", "cam"],
    "none, cam": ["--ratio", "none", "--source", "cam"],
    "paper, argmax": ["--ratio", "paper", "--source", "argmax"],
    "smoothed, argmax": ["--ratio", "smoothed", "--source", "argmax"],
    "none, argmax": ["--ratio", "none", "--source", "argmax"],
}
RARE_SHARE = 0.02  # of the training pixels


@click.command(context_settings={"ignore_unknown_options": True})
@click.option("--seeds", default="0,1", show_default=True, help="Comma-separated.")
@click.option("--rows", default=",".join(ROWS).replace(", ", "+"), help="Rows to run, e.g. uniform,smoothed+cam.")
@click.option("--jobs", default=2, show_default=True, help="Runs at a time.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs/ratio"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench/results/ratio"), show_default=True)
@click.argument("settings", nargs=-1, type=click.UNPROCESSED)
def main(seeds: str, rows: str, jobs: int, runs: Path, out: Path, settings: tuple[str, ...]) -> None:
    """Compare the ratio modes; other options (--dataset, --epochs, ...) go to `cawa-fast train`."""
    wanted = [row.replace("+", ", ") for row in rows.split(",")]
    tasks = [(row, int(seed)) for seed in seeds.split(",") for row in wanted]
    with Progress() as progress, ThreadPoolExecutor(jobs) as pool:
        bar = progress.add_task("runs", total=len(tasks))
        for _ in pool.map(lambda task: _run(task[0], task[1], runs, settings), tasks):
            progress.advance(bar)
    # where the files lie is no setting
    shown = [word for before, word in zip(("", *settings), settings, strict=False) if "--root" not in (before, word)]
    result = {"settings": shown, "torch": torch.__version__, "rows": [_read(*task, runs) for task in tasks]}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(_table(result))
    print(_table(result))


def _folder(row: str, seed: int, runs: Path) -> Path:
    return runs / f"{row.replace(', ', '-')}-s{seed}"


def _run(row: str, seed: int, runs: Path, settings: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "cawa_fast.cli", "train", "--resume", "--no-tables", "--threads", "1"]
    command += ["--run-dir", str(_folder(row, seed, runs)), "--seed", str(seed), *ROWS[row], *settings]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def _read(row: str, seed: int, runs: Path) -> dict[str, Any]:
    """Final values of one run. Dead: a class that is in the validation set and ends with an IoU of 0."""
    folder = _folder(row, seed, runs)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    data = json.loads((folder / "dataset.json").read_text())
    share = torch.tensor(data["train_pixels"], dtype=torch.float64)
    rare = (share / share.sum() < RARE_SHARE).tolist()
    final = records[-1]
    names = data["class_names"]
    rare_iou = [iou for iou, is_rare in zip(final["iou"], rare, strict=True) if is_rare and iou is not None]
    return {
        "row": row,
        "seed": seed,
        "epochs": len(records),
        "miou": final["miou"],
        "rare_iou": statistics.mean(rare_iou),
        "pixel_accuracy": final["pixel_accuracy"],
        "dead": [name for name, iou in zip(names, final["iou"], strict=True) if iou == 0],
        "rare": [name for name, is_rare in zip(names, rare, strict=True) if is_rare],
        "iou": dict(zip(names, final["iou"], strict=True)),
        "weight": dict(zip(names, final["weight"], strict=True)),
    }


def _table(result: dict[str, Any]) -> str:
    rows = result["rows"]
    names = list(dict.fromkeys(row["row"] for row in rows))
    seeds = sorted({row["seed"] for row in rows})
    uniform = {row["seed"]: row for row in rows if row["row"] == "uniform"}
    lines = [
        f"`cawa-fast train {' '.join(result['settings'])}`",
        "",
        f"{rows[0]['epochs']} epochs, seeds {', '.join(map(str, seeds))}; values after the last epoch, on the images "
        "that the weights were scored on.",
        f"Rare: {', '.join(rows[0]['rare'])} (under {RARE_SHARE:.0%} of the training pixels).",
        "",
        "| ratio, source | mIoU | rare IoU | gain in mIoU over uniform | gain in rare IoU | classes dead at the end |",
        "|---|---|---|---|---|---|",
    ]
    for name in names:
        mine = [row for row in rows if row["row"] == name]
        cells = [name, *(_per_seed([row[key] for row in mine]) for key in ("miou", "rare_iou"))]
        for key in ("miou", "rare_iou"):
            gains = [row[key] - uniform[row["seed"]][key] for row in mine if row["seed"] in uniform]
            cells.append(f"{statistics.mean(gains):+.3f}" if gains else "–")
        cells.append("; ".join(", ".join(row["dead"]) or "none" for row in mine))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _per_seed(values: list[float]) -> str:
    return f"**{statistics.mean(values):.3f}** ({', '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
