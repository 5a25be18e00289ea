"""The rows of an ablation, in groups, and the runs that they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ... import reference
from ..config import PIXEL_SOURCES, WEIGHTINGS, TrainConfig


@dataclass(frozen=True)
class AblationRow:
    """One line of an ablation.

    Attributes:
        name: unique; run folders are named by it.
        group: a key of :data:`GROUPS`, or "custom".
        title: its name in tables and figures.
        settings: the settings that it changes, always with ``weighting``.
    """

    name: str
    group: str
    title: str
    settings: dict[str, Any]


GROUPS = {
    "rivals": "Baselines: static weights, adaptive weights, other losses",
    "ladder": "The method's parts, added one by one (the paper's table 3)",
    "ratio": "What is scored, and the ratio of the new score to the last one (Eq. 6)",
    "delta": "Share of IoU in the score (the paper's figure 5)",
    "tau": "Threshold of the pseudo masks",
    "normalize": "Normalisation of the activation maps",
    "classes": "Classes scored in an image",
    "counts": "Pixels per class in the base weight (Eq. 5)",
    "cam": "Method of the activation maps",
    "clip": "Largest raw weight (Eq. 8)",
    "momentum": "Share of earlier steps' counts in a step",
    "every": "Epochs between two steps",
}
CUSTOM = "custom"
_FIXED = ("dataset", "seed")  # rows are compared on one dataset and seed by seed
DEFAULT_ROWS = ("rivals", "ladder")

_TITLES = {
    "uniform": "uniform",
    "inverse_frequency": "inverse frequency",
    "median_frequency": "median frequency (Eigen and Fergus 2015)",
    "effective_number": "effective number (Cui et al. 2019)",
    "enet": "ENet (Paszke et al. 2016)",
    "log_frequency": "log frequency",
    "power": "square root of the frequency",
    "enet_power": "square root of ENet's weights",
    "focal": "focal loss (Lin et al. 2017)",
    "focal_power": "focal loss with square-root weights",
    "dice": "cross-entropy + Dice",
    "seesaw": "seesaw loss (Wang et al. 2021)",
    "logit_adjustment": "logit adjustment (Menon et al. 2021)",
    "recall_batch": "recall loss (Tian et al. 2022)",
    "recall": "recall of the last validation",
    "difficulty": "class difficulty (Sinha et al. 2020)",
    "cawa": "CAWA, the defaults",
    "decoupled": "decoupled: decisions by IoU",
    "balanced": "balanced: decisions near the balance of the classes",
}

# Figure 5 goes from 0 to 1; the steps are finer near the paper's optimum.
_DELTAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
_TAUS = (0.2, 0.35, 0.5, 0.65, 0.8)
_W_MAX = (5.0, 10.0, 20.0)
_MOMENTA = (0.0, 0.5, 0.9)
_EVERY = (1, 2, 5)
# Without hirescam, which equals gradcam where the gradient is the same at every position, as it is here.
_CAM_METHODS = ("gradcam", "gradcam++", "layercam")


def _catalogue() -> Iterable[AblationRow]:
    for name in sorted(WEIGHTINGS, key=list(_TITLES).index):
        yield AblationRow(name, "rivals", _TITLES[name], {"weighting": name})

    first = {"weighting": "cawa", "source": "argmax", "delta": 1.0, "ratio": "none"}
    second = first | {"source": "cam"}
    yield AblationRow("ladder-baseline", "ladder", "baseline", {"weighting": "uniform"})
    yield AblationRow("ladder-dynamic", "ladder", "dynamic weights", first)
    yield AblationRow("ladder-pseudo-mask", "ladder", "+ pseudo mask", second)
    yield AblationRow("ladder-csps", "ladder", "+ CSPS", {"weighting": "cawa", "source": "cam", "ratio": "none"})
    yield AblationRow("ladder-awa", "ladder", "+ AWA", {"weighting": "cawa", "source": "cam", "ratio": "smoothed"})
    letter = {"weighting": "cawa", "source": "cam", "ratio": "paper"}
    yield AblationRow("ladder-awa-paper", "ladder", "+ AWA, ratio exactly as in Eq. 6", letter)

    for source in ("cam", "argmax"):
        for ratio in ("paper", "smoothed", "none"):
            yield _sweep_row("ratio", {"source": source, "ratio": ratio}, f"{source}, ratio {ratio}")
    for delta in _DELTAS:
        yield _sweep_row("delta", {"delta": delta}, f"delta = {delta:g}")
    for tau in _TAUS:
        yield _sweep_row("tau", {"tau": tau}, f"tau = {tau:g}")
    for normalize in reference.NORMALIZATIONS:
        yield _sweep_row("normalize", {"normalize": normalize}, normalize)
    for classes in reference.CLASSES:
        yield _sweep_row("classes", {"classes": classes}, classes)
    for pixel_source in PIXEL_SOURCES:
        yield _sweep_row("counts", {"counts": pixel_source}, pixel_source)
    for method in _CAM_METHODS:
        yield _sweep_row("cam", {"cam_method": method}, method)
    for w_max in _W_MAX:
        yield _sweep_row("clip", {"w_max": w_max}, f"w_max = {w_max:g}")
    for momentum in _MOMENTA:
        yield _sweep_row("momentum", {"weight_momentum": momentum}, f"momentum = {momentum:g}")
    for every in _EVERY:
        yield _sweep_row("every", {"every": every}, f"every = {every}")


def _sweep_row(group: str, settings: dict[str, Any], title: str) -> AblationRow:
    return AblationRow(_name(settings), group, title, {"weighting": "cawa"} | settings)


def _name(settings: dict[str, Any]) -> str:
    """``delta=0.5+source=cam``, which :func:`choose_rows` reads."""
    order = [setting.name for setting in fields(TrainConfig)]
    shown = sorted(settings, key=order.index)
    return "+".join(f"{k}={v:g}" if isinstance((v := settings[k]), float) else f"{k}={v}" for k in shown)


CATALOGUE = tuple(_catalogue())


def choose_rows(words: Sequence[str]) -> list[AblationRow]:
    """The rows that ``words`` name, in their order, each once.

    Args:
        words: each a group ("rivals"), "all", a row ("log_frequency", "delta=0.9"), or custom settings joined by plus
            signs ("delta=0.5+ratio=none", "weighting=focal+gamma=1"), which change those of CAWA.

    Raises:
        ValueError: a word names no row, or a setting is unknown or out of range.

    Example:
        >>> [row.name for row in choose_rows(["classes", "tau=0.3"])]
        ['classes=present', 'classes=all', 'tau=0.3']
    """
    rows: dict[str, AblationRow] = {}
    for word in words:
        if word == "all":
            found: Sequence[AblationRow] = CATALOGUE
        elif word in GROUPS:
            found = [row for row in CATALOGUE if row.group == word]
        elif named := [row for row in CATALOGUE if row.name == word]:
            found = named
        else:
            found = [_custom(word)]
        rows.update((row.name, row) for row in found)
    if not rows:
        raise ValueError(f"no rows were chosen; choose from {', '.join(GROUPS)}, all, or single rows")
    return list(rows.values())


def _custom(word: str) -> AblationRow:
    known = {setting.name: setting for setting in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for part in word.split("+"):
        name, sign, text = part.partition("=")
        name = name.strip().replace("-", "_")
        if not sign:
            raise ValueError(
                f"{word!r} is not a row; choose from the groups {', '.join(GROUPS)}, all, the rows "
                f"{', '.join(row.name for row in CATALOGUE)}, or settings such as delta=0.5+ratio=none"
            )
        if name not in known or name in _FIXED or known[name].metadata["resume"]:
            raise ValueError(f"{word!r}: {name!r} is not a setting that a row can change")
        if name in settings:
            raise ValueError(f"{word!r} sets {name} twice")
        settings[name] = _value(name, str(known[name].type), text.strip())
    if named := [row for row in CATALOGUE if row.name == _name(settings)]:  # tau=.5 is the row tau=0.5
        return named[0]
    TrainConfig(**{"weighting": "cawa", **settings})  # raises now if a value is out of range
    return AblationRow(_name(settings), CUSTOM, _name(settings).replace("+", ", "), {"weighting": "cawa"} | settings)


def _value(name: str, kind: str, text: str) -> Any:
    readers: dict[str, Any] = {"int": int, "float": float, "str": str}
    reader = readers.get(kind.removesuffix(" | None"))
    if reader is None:
        raise ValueError(f"{name} cannot differ between rows; set it for all rows with --{name.replace('_', '-')}")
    try:
        return reader(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not of type {reader.__name__}") from None


@dataclass(frozen=True)
class Plan:
    """Rows and the runs that they need.

    Attributes:
        rows: in the order of the tables.
        folders: the name of the run's folder, by the name of the row and the seed. Rows with equal settings share runs.
        configs: the settings of each run, by its folder, in the order of training: first all rows with the first seed,
            so that a comparison is possible early.
    """

    rows: tuple[AblationRow, ...]
    folders: dict[str, dict[int, str]]
    configs: dict[str, TrainConfig]


def make_plan(base: TrainConfig, rows: Sequence[AblationRow], seeds: Sequence[int]) -> Plan:
    """The runs of ``rows`` for ``seeds``, with the settings ``base`` changed by each row.

    A run that several rows share is named by the first of them in the catalogue, even if that row is not chosen. So the
    name of its folder does not depend on which rows are chosen.
    """
    names: dict[TrainConfig, str] = {}
    for row in (*CATALOGUE, *rows):
        names.setdefault(replace(base, **row.settings, seed=0), row.name)
    folders: dict[str, dict[int, str]] = {row.name: {} for row in rows}
    configs: dict[str, TrainConfig] = {}
    for seed in seeds:
        for row in rows:
            config = replace(base, **row.settings, seed=0)
            folder = f"{names[config]}-s{seed}"
            folders[row.name][seed] = folder
            configs[folder] = replace(config, seed=seed)
    return Plan(tuple(rows), folders, configs)
