"""What an ablation compares: the rows, in groups, and the runs that they need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ... import reference
from ..config import COUNTS, WEIGHTINGS, TrainConfig


@dataclass(frozen=True)
class Row:
    """One line of an ablation.

    Attributes:
        name: unlike that of any other row; run folders are called by it.
        group: key of :data:`GROUPS`, or "custom".
        title: what tables and figures call it.
        settings: what it changes in the settings that all rows share; always with ``weighting``.
    """

    name: str
    group: str
    title: str
    settings: dict[str, Any]


GROUPS = {
    "rivals": "Rivals: static weights, adaptive weights, other losses",
    "ladder": "The method's parts, one after the other (the paper's table 3)",
    "ratio": "What is scored, and how the change of the score enters (Eq. 6)",
    "delta": "Share of IoU in the score (the paper's figure 5)",
    "tau": "Threshold of the pseudo masks",
    "normalize": "Normalisation of the activation maps",
    "classes": "Classes scored in an image",
    "counts": "Pixel counts in the base weight (Eq. 5)",
    "cam": "Kind of activation maps",
    "clip": "Largest raw weight (Eq. 8)",
    "momentum": "Share of earlier counts in a step's",
    "every": "Epochs between two steps",
}
CUSTOM = "custom"
_FIXED = ("dataset", "seed")  # rows are compared on one data set, seed by seed
DEFAULT_ROWS = ("rivals", "ladder")

_TITLES = {
    "uniform": "uniform",
    "inverse_frequency": "inverse frequency",
    "median_frequency": "median frequency (Eigen and Fergus 2015)",
    "effective_number": "effective number (Cui et al. 2019)",
    "enet": "ENet (Paszke et al. 2016)",
    "log_frequency": "log frequency",
    "focal": "focal loss (Lin et al. 2017)",
    "logit_adjustment": "logit adjustment (Menon et al. 2021)",
    "recall_batch": "recall loss (Tian et al. 2022)",
    "recall": "recall of the last validation",
    "difficulty": "class difficulty (Sinha et al. 2020)",
    "cawa": "CAWA, the defaults",
}

# Figure 5 goes from 0 to 1; closer where the paper has its peak.
_DELTAS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)
_TAUS = (0.2, 0.35, 0.5, 0.65, 0.8)
_W_MAX = (5.0, 10.0, 20.0)
_MOMENTA = (0.0, 0.5, 0.9)
_EVERY = (1, 2, 5)
# hirescam is left out: where the gradient is the same at every position it is gradcam.
_CAM_METHODS = ("gradcam", "gradcam++", "layercam")


def _catalogue() -> Iterable[Row]:
    for name in sorted(WEIGHTINGS, key=list(_TITLES).index):
        yield Row(name, "rivals", _TITLES[name], {"weighting": name})

    first = {"weighting": "cawa", "source": "argmax", "delta": 1.0, "ratio": "none"}
    second = first | {"source": "cam"}
    yield Row("ladder-baseline", "ladder", "baseline", {"weighting": "uniform"})
    yield Row("ladder-dynamic", "ladder", "dynamic weights", first)
    yield Row("ladder-pseudo-mask", "ladder", "+ pseudo mask", second)
    yield Row("ladder-csps", "ladder", "+ CSPS", {"weighting": "cawa", "source": "cam", "ratio": "none"})
    yield Row("ladder-awa", "ladder", "+ AWA", {"weighting": "cawa", "source": "cam", "ratio": "smoothed"})
    letter = {"weighting": "cawa", "source": "cam", "ratio": "paper"}
    yield Row("ladder-awa-paper", "ladder", "+ AWA, ratio to the letter", letter)

    for source in ("cam", "argmax"):
        for ratio in ("paper", "smoothed", "none"):
            yield _sweep("ratio", {"source": source, "ratio": ratio}, f"{source}, ratio {ratio}")
    for delta in _DELTAS:
        yield _sweep("delta", {"delta": delta}, f"delta = {delta:g}")
    for tau in _TAUS:
        yield _sweep("tau", {"tau": tau}, f"tau = {tau:g}")
    for normalize in reference.NORMALIZATIONS:
        yield _sweep("normalize", {"normalize": normalize}, normalize)
    for classes in reference.CLASSES:
        yield _sweep("classes", {"classes": classes}, classes)
    for counts in COUNTS:
        yield _sweep("counts", {"counts": counts}, counts)
    for method in _CAM_METHODS:
        yield _sweep("cam", {"cam_method": method}, method)
    for w_max in _W_MAX:
        yield _sweep("clip", {"w_max": w_max}, f"w_max = {w_max:g}")
    for momentum in _MOMENTA:
        yield _sweep("momentum", {"weight_momentum": momentum}, f"momentum = {momentum:g}")
    for every in _EVERY:
        yield _sweep("every", {"every": every}, f"every = {every}")


def _sweep(group: str, settings: dict[str, Any], title: str) -> Row:
    return Row(_name(settings), group, title, {"weighting": "cawa"} | settings)


def _name(settings: dict[str, Any]) -> str:
    """``delta=0.5+source=cam``: as :func:`choose` reads it."""
    order = [setting.name for setting in fields(TrainConfig)]
    shown = sorted(settings, key=order.index)
    return "+".join(f"{k}={v:g}" if isinstance((v := settings[k]), float) else f"{k}={v}" for k in shown)


CATALOGUE = tuple(_catalogue())


def choose(words: Sequence[str]) -> list[Row]:
    """The rows that ``words`` name, in their order, none twice.

    Args:
        words: each a group ("rivals"), "all", a row ("log_frequency", "delta=0.9"), or settings of one's own over
            those of CAWA, joined by plus signs ("delta=0.5+ratio=none", "weighting=focal+gamma=1").

    Raises:
        ValueError: a word names no row, or a setting is unknown or out of range.

    Example:
        >>> [row.name for row in choose(["classes", "tau=0.3"])]
        ['classes=present', 'classes=all', 'tau=0.3']
    """
    rows: dict[str, Row] = {}
    for word in words:
        if word == "all":
            found: Sequence[Row] = CATALOGUE
        elif word in GROUPS:
            found = [row for row in CATALOGUE if row.group == word]
        elif named := [row for row in CATALOGUE if row.name == word]:
            found = named
        else:
            found = [_custom(word)]
        rows.update((row.name, row) for row in found)
    if not rows:
        raise ValueError(f"no rows were chosen; choose of {', '.join(GROUPS)}, all, or single rows")
    return list(rows.values())


def _custom(word: str) -> Row:
    known = {setting.name: setting for setting in fields(TrainConfig)}
    settings: dict[str, Any] = {}
    for part in word.split("+"):
        name, sign, text = part.partition("=")
        name = name.strip().replace("-", "_")
        if not sign:
            raise ValueError(
                f"{word!r} is no row; choose of the groups {', '.join(GROUPS)}, all, the rows "
                f"{', '.join(row.name for row in CATALOGUE)}, or settings such as delta=0.5+ratio=none"
            )
        if name not in known or name in _FIXED or known[name].metadata["resume"]:
            raise ValueError(f"{word!r}: {name!r} is no setting that a row can change")
        if name in settings:
            raise ValueError(f"{word!r} sets {name} twice")
        settings[name] = _value(name, str(known[name].type), text.strip())
    if named := [row for row in CATALOGUE if row.name == _name(settings)]:  # tau=.5 is tau=0.5
        return named[0]
    TrainConfig(**{"weighting": "cawa", **settings})  # out of range: named now, not by the run
    return Row(_name(settings), CUSTOM, _name(settings).replace("+", ", "), {"weighting": "cawa"} | settings)


def _value(name: str, kind: str, text: str) -> Any:
    readers: dict[str, Any] = {"int": int, "float": float, "str": str}
    reader = readers.get(kind.removesuffix(" | None"))
    if reader is None:
        raise ValueError(f"{name} cannot differ between rows; give it to all with --{name.replace('_', '-')}")
    try:
        return reader(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is no {reader.__name__}") from None


@dataclass(frozen=True)
class Plan:
    """Rows, and the runs that they need.

    Attributes:
        rows: in the order of the tables.
        folders: by row's name and seed: the name of the run's folder. Rows with equal settings share a run.
        configs: settings by folder, in the order of running: all rows of the first seed first, so that a comparison
            can be read early.
    """

    rows: tuple[Row, ...]
    folders: dict[str, dict[int, str]]
    configs: dict[str, TrainConfig]


def make_plan(base: TrainConfig, rows: Sequence[Row], seeds: Sequence[int]) -> Plan:
    """The runs of ``rows`` for ``seeds``: ``base`` with each row's settings.

    A run that several rows need is called by the first of them in the catalogue, chosen or not, so that its folder's
    name does not depend on what else is chosen.
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
