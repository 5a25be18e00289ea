"""Example images of the report: predictions, activation maps and pseudo masks on validation images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from ... import GradCAM, reference
from ..config import TrainConfig
from ..datasets import SegmentationDataset
from ..runs.checkpoint import read_checkpoint
from ..runs.data import class_differences
from ..runs.read import Run
from ..text import shorten
from ..training.loaders import normalize_images, open_split
from .figures import FONT, STYLE, new_figure

_SCANNED = 200  # validation images to choose from, at most: reading all labels of a large dataset takes minutes
_LEAST_SHARE = 4e-4  # of an image's pixels; a smaller object cannot be recognised on the page
_LEVELS = 64  # of the heat map
_HEAT = "inferno"
_WITHOUT = "make the report without example images: --images 0 (images=0)"

AGREEMENT = {"hit": (45, 140, 235), "false alarm": (245, 160, 30), "missed": (225, 60, 160)}
"""RGB colours for the comparison of a pseudo mask with the ground truth."""


@dataclass(frozen=True)
class Tile:
    """One picture of a scene.

    Attributes:
        picture: the picture.
        title: below the picture.
        alt: description for readers who cannot see it.
        note: second line below the picture.
        run: number of the run, for its colour.
        kind: "photo", or "map" for a picture of few colours that must not be smoothed.
    """

    picture: Image.Image
    title: str
    alt: str
    note: str = ""
    run: int | None = None
    kind: str = "photo"

    @property
    def source(self) -> str:
        """The picture as a data URI."""
        if self.kind == "map":
            return _data_uri(self.picture, "PNG", optimize=True)
        return _data_uri(self.picture, "JPEG", quality=92)


@dataclass(frozen=True)
class Scene:
    """One validation image.

    Attributes:
        title: above the pictures.
        tiles: the image, its ground truth, and the prediction of each run.
        maps: an activation map and a pseudo mask of each class shown.
    """

    title: str
    tiles: list[Tile]
    maps: list[Tile]


def cam_run(runs: Sequence[Run]) -> Run:
    """The run whose activation maps are shown: the last one with adaptive weights, or else the last one."""
    return next((run for run in reversed(runs) if run.adaptive), runs[-1])


def make_scenes(runs: Sequence[Run], classes: Sequence[int], count: int) -> list[Scene]:
    """Scenes of ``count`` validation images that show some of ``classes``."""
    if count == 0:
        return []
    networks = [_load_network(run) for run in runs]
    sizes = [TrainConfig.from_dict(dict(run.config)).resize for run in runs]
    opened = {size: _open(runs[0], size) for size in dict.fromkeys(sizes)}
    data = [opened[size] for size in sizes]  # each network predicts at the size that it was trained for
    mapped = runs.index(cam_run(runs))
    return [_scene(data, index, shown, runs, networks, mapped) for index, shown in _choose(data[0], classes, count)]


def _open(run: Run, size: tuple[int, int] | None) -> SegmentationDataset:
    """The validation images of ``run``, resized to ``size``."""
    config = replace(TrainConfig.from_dict(dict(run.config)), resize=size)
    data = open_split(config, "val")
    if differ := class_differences(run.dataset["class_names"], data.class_names):
        raise ValueError(
            f"{run.path / 'dataset.json'}: its classes differ from the present classes of dataset {config.dataset!r}: "
            f"{'; '.join(differ)}. Train the run again, or {_WITHOUT}"
        )
    return data


def _load_network(run: Run) -> torch.nn.Module:
    file = next((run.path / name for name in ("latest.pt", "best.pt") if (run.path / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{run.path / 'latest.pt'} and best.pt are missing, but the example images need a checkpoint; train the "
            f"run again, or {_WITHOUT}"
        )
    config = TrainConfig.from_dict(dict(run.config))
    network = config.network(len(run.dataset["class_names"]), pretrained=False)
    checkpoint = read_checkpoint(file, f"restore it, or {_WITHOUT}")
    try:
        network.load_state_dict(checkpoint["model"])
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise ValueError(
            f"{file} holds another network than model={config.model!r} of config.json beside it: {reason}; restore it, "
            f"or {_WITHOUT}"
        ) from error
    return network.eval()


def _choose(data: SegmentationDataset, classes: Sequence[int], count: int) -> Iterator[tuple[int, list[int]]]:
    """Choose images greedily, each for the classes that the images before it showed least.

    Yields the index of an image and the one or two classes to show of it.
    """
    step = max(1, -(-len(data) // _SCANNED))
    pixels: dict[int, np.ndarray] = {}
    for index in range(0, len(data), step):
        label = data.read_label(index)
        share = np.bincount(label.reshape(-1), minlength=256)[list(classes)] / label.size
        pixels[index] = np.where(share >= _LEAST_SHARE, share, 0)
    shown = np.zeros(len(classes))
    for _ in range(min(count, len(pixels))):
        # the square root favours two small objects over one large one
        index = max(pixels, key=lambda i: float((np.sqrt(pixels[i]) / (1 + shown) ** 2).sum()))
        share = pixels.pop(index)
        present = [k for k in range(len(classes)) if share[k] > 0]
        present.sort(key=lambda k: (shown[k], -share[k]))
        shown += share > 0
        yield index, [classes[k] for k in present[:2]]


@torch.inference_mode()
def _scene(
    opened: Sequence[SegmentationDataset],
    index: int,
    classes: list[int],
    runs: Sequence[Run],
    networks: Sequence[torch.nn.Module],
    mapped: int,
) -> Scene:
    """The scene of one image: each network predicts at its own image size; all are shown at that of the first run."""
    data = opened[0]
    image, label = data.read(index)
    names = data.class_names
    size = (label.shape[0], label.shape[1])
    valid = label != data.ignore_index
    listed = ", ".join(names[c] for c in classes) or "none of the chosen classes"
    title = f"Validation image {index}"
    tiles = [
        Tile(_photograph(image), "image", f"{title}: photograph"),
        Tile(_label_map(label, data.palette), "ground truth", f"{title}: ground truth, with {listed}", kind="map"),
    ]
    maps: list[Tile] = []
    for number, (run, network) in enumerate(zip(runs, networks, strict=True)):
        with GradCAM(network, num_classes=len(names), method=run.config.get("cam_method", "gradcam")) as cam:
            seen = image if opened[number] is data else opened[number].read(index)[0]
            logits = network(normalize_images(torch.from_numpy(seen.copy()).permute(2, 0, 1).unsqueeze(0)))
        predicted = reference.resize(logits.float(), size, False).argmax(1)[0].numpy().astype(np.uint8)
        note = ", ".join(f"{names[c]} {_iou_text(predicted == c, label == c, valid)}" for c in classes)
        tiles.append(
            Tile(
                _label_map(predicted, data.palette),
                run.label,
                f"{title}: prediction of {run.label}",
                f"IoU here: {note}" if note else "",
                run=number,
                kind="map",
            )
        )
        if number == mapped:
            maps = [
                tile for c in classes for tile in _map_tiles(run, cam()[:, c : c + 1], image, label, c, names[c], valid)
            ]
    return Scene(f"{title}: {listed}", tiles, maps)


def _map_tiles(
    run: Run, cam: Tensor, image: np.ndarray, label: np.ndarray, index: int, name: str, valid: np.ndarray
) -> list[Tile]:
    """Two pictures: the class's activation map ``(1, 1, h, w)``, and its pseudo mask compared with the ground truth."""
    tau, normalize = run.config.get("tau", 0.5), run.config.get("normalize", "max")
    size = (label.shape[0], label.shape[1])

    def mask_at(threshold: float) -> np.ndarray:
        return reference.pseudo_masks(cam, size, threshold, normalize, False)[0, 0].numpy()

    # the share of thresholds that a position exceeds is its normalised value, as the reference computes it
    heat = np.stack([mask_at((k + 0.5) / _LEVELS) for k in range(_LEVELS)]).mean(0)
    mask, truth = mask_at(tau), label == index
    return [
        Tile(_heat_map(image, heat), f"{name}: CAM", f"Activation map of {name} in {run.label}, over the image"),
        Tile(
            _agreement(image, mask, truth, valid),
            f"{name}: pseudo mask",
            f"Pseudo mask of {name} in {run.label} compared with the ground truth: hits, false alarms and misses",
            f"IoU here: {_iou_text(mask, truth, valid)}",
        ),
    ]


def _iou_text(mask: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> str:
    union = ((mask | truth) & valid).sum()
    return f"{100 * (mask & truth & valid).sum() / union:.0f}\N{NO-BREAK SPACE}%" if union else "–"


# ------------------------------------------------------------------------------------------------------- pictures


def _photograph(image: np.ndarray) -> Image.Image:
    """The picture of an image ``(H, W, 3)`` uint8."""
    return Image.fromarray(np.ascontiguousarray(image))


def _label_map(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """Class indices ``(H, W)`` uint8 in the dataset's colours. Pixels without a class are transparent."""
    colours = np.zeros((256, 4), dtype=np.uint8)
    colours[: len(palette), :3] = palette
    colours[: len(palette), 3] = 255
    return Image.fromarray(colours[labels])


def _heat_map(image: np.ndarray, heat: np.ndarray) -> Image.Image:
    """Values ``(H, W)`` in [0, 1] as colours over the grey image; higher values are more opaque."""
    colour = matplotlib.colormaps[_HEAT](heat)[..., :3] * 255
    return _overlay(image, colour, 0.35 + 0.4 * heat)


def _agreement(image: np.ndarray, mask: np.ndarray, truth: np.ndarray, valid: np.ndarray) -> Image.Image:
    """Hits, false alarms and misses of a pseudo mask, ``(H, W)`` bool as the ground truth is, over the grey image."""
    colour = np.zeros(image.shape)
    for where, tone in zip((mask & truth, mask & ~truth & valid, ~mask & truth), AGREEMENT.values(), strict=True):
        colour[where] = tone
    return _overlay(image, colour, np.where(colour.any(-1), 0.8, 0.0))


@matplotlib.rc_context(STYLE)
def contact_sheet(scene: Scene) -> Figure:
    """The scene as one figure for a PNG file, with activation maps and pseudo masks in a second row."""
    rows = [scene.tiles, *([scene.maps] if scene.maps else [])]
    columns = max(map(len, rows))
    photo = scene.tiles[0].picture
    width = max(150, min(240, 1400 // columns))
    figure = new_figure(columns * width, (width * photo.height / photo.width + 44) * len(rows) + 30)
    figure.suptitle(shorten(scene.title, columns * width), fontsize=FONT, fontweight="bold", x=0.01, ha="left")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.ravel():
        axes.set_axis_off()
    for line, tiles in zip(grid, rows, strict=True):
        for axes, tile in zip(line, tiles, strict=False):
            axes.imshow(np.asarray(tile.picture.convert("RGBA")), interpolation="antialiased")
            text = f"{shorten(tile.title, width)}\n{shorten(tile.note, width, FONT - 2)}"
            axes.set_title(text, fontsize=FONT - 2, fontweight="normal")
    return figure


def heat_gradient() -> str:
    """The colour scale of the heat map from 0 to 1, as a CSS gradient."""
    stops = (to_hex(matplotlib.colormaps[_HEAT](k / 8)) for k in range(9))
    return f"linear-gradient(to right, {', '.join(stops)})"


def _overlay(image: np.ndarray, colour: np.ndarray, opacity: np.ndarray) -> Image.Image:
    grey = image @ np.array((0.299, 0.587, 0.114))
    mixed = grey[..., None] * (1 - opacity[..., None]) + colour * opacity[..., None]
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


def _data_uri(picture: Image.Image, kind: str, **options: object) -> str:
    if picture.width > 640:  # twice the width on the page
        between = Image.Resampling.NEAREST if kind == "PNG" else Image.Resampling.LANCZOS  # maps keep their colours
        picture = picture.resize((640, round(picture.height * 640 / picture.width)), between)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
