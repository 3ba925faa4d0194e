"""What the flags of all commands share: how they are explained, and what is checked of them before any work."""

from __future__ import annotations

from collections.abc import Mapping

import tyro

from threed.errors import Mistake, unknown


def said(text: str, default: str | None = None, metavar: str | None = None, name: str | None = None) -> object:
    """A flag's help, and what holds where the flag is left out if that is not a plain value."""
    hint = f"(default: {default})" if default else None
    return tyro.conf.arg(help=text, help_behavior_hint=hint, metavar=metavar, name=name)


def check_ranges(asked: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Raises Mistake for the first of these fields that is given and out of its range, ends included."""
    for name, (low, high) in ranges.items():
        value = getattr(asked, name)
        if value is not None and not low <= value <= high:  # NaN is in no range
            flag = "--" + name.replace("_", "-")
            raise Mistake(f"{flag} is {value}; it must lie between {low:g} and {high:g}")


def check_device(name: str, devices: Mapping[str, bool]) -> None:
    """Raises Mistake for a device that is not known, or not there."""
    if name not in devices:
        raise unknown("device", name, devices)
    if not devices[name]:
        offered = ", ".join(name for name, there in devices.items() if there)
        raise Mistake(f"PyTorch finds no device {name!r} on this machine; use one of: {offered}")
