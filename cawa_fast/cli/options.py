"""The settings of a run as command-line options, and the value types that click lacks."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import click

from ..recipes.config import TrainConfig


class _Size(click.ParamType):
    name = "HxW"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parts = value.lower().split("x")
        if len(parts) > 2 or not all(part.isdigit() for part in parts):
            self.fail(f"{value!r} is not HEIGHTxWIDTH, e.g. 180x240, nor the side of a square, e.g. 512", param, ctx)
        return int(parts[0]), int(parts[-1])


class Numbers(click.ParamType):
    """Whole numbers, separated by commas."""

    name = "N,N,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return tuple(int(number) for number in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of whole numbers, e.g. 0,1,2", param, ctx)


class _Range(click.ParamType):
    name = "LOW,HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            low, high = map(float, value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH, e.g. 0.5,2", param, ctx)
        return low, high


_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "float | None": float,
    "str": str,
    "int | None": int,
    "str | None": str,
    "tuple[int, int] | None": _Size(),
    "tuple[float, float]": _Range(),
}


def settings_options(command: Any, without: tuple[str, ...] = ()) -> Any:
    """Adds one option per field of TrainConfig. A setting is described only there."""
    for setting in reversed(fields(TrainConfig)):
        if setting.name in without:
            continue
        name, default, choices = f"--{setting.name.replace('_', '-')}", setting.default, setting.metadata["choices"]
        text = setting.metadata["help"]
        if setting.type == "bool":
            option = click.option(f"{name}/--no-{setting.name}", default=default, show_default=True, help=text)
        else:
            if isinstance(default, tuple):
                default = ",".join(f"{value:g}" for value in default)
            kind = click.Choice(choices) if choices else _TYPES[str(setting.type)]
            option = click.option(name, type=kind, default=default, show_default=default is not None, help=text)
        command = option(command)
    return command
