"""What report.json says, in plain words: facts as pairs of what and how much, each with a sentence that explains it.

Reports are files like any other: what is missing in one, or is not what it should be, is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Fact = dict[str, str]


def facts(report: Any) -> list[Fact]:
    """Those of a report that can be told."""
    found: list[Fact] = []
    for tell in TOLD:
        try:
            found += [{"what": what, "value": value, "explained": explained} for what, value, explained in tell(report)]
        except (AttributeError, KeyError, IndexError, TypeError, ValueError, OverflowError):
            continue
    return found


def duration(seconds: float) -> str:
    """As people say it."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def percent(share: float) -> str:
    """A share of one; what is not all of it never reads as 100 %."""
    return f"{100 * share:.0f} %" if share < 0.985 or share == 1 else f"{100 * min(share, 0.999):.1f} %"


def _surface(report: Any) -> Iterator[tuple[str, str, str]]:
    closed = "closed" if report["watertight"] else "open"
    explained = {
        "closed": "Watertight: every edge has a triangle on both sides, as physics and 3D printing ask for.",
        "open": "Some edges have a triangle on one side only; that may be as it should be.",
    }
    yield "Surface", closed, explained[closed]


def _size(report: Any) -> Iterator[tuple[str, str, str]]:
    low, high = report["bounds"]
    wide, tall, deep = (float(b) - float(a) for a, b in zip(low, high, strict=True))
    yield "Size", f"{wide:.2f} × {tall:.2f} × {deep:.2f} m", "Wide, high, deep, in metres."


def _volume(report: Any) -> Iterator[tuple[str, str, str]]:
    litres = 1000 * float(report["volume"])
    value = f"{litres / 1000:.3g} m³" if litres >= 1000 else f"{litres:.3g} litres"
    yield "Volume", value, "The space inside the surface."


def _texture(report: Any) -> Iterator[tuple[str, str, str]]:
    tall, wide = report["texture_size"]
    yield "Texture", f"{int(wide)} × {int(tall)}", "Texels of each map."
    charts, use = int(report["charts"]), float(report["texel_use"])
    explained = "How many pieces the surface was cut into for the texture, and how much of the texture they fill."
    yield "Charts", f"{charts}, filling {percent(use)}", explained


def _agreement(report: Any) -> Iterator[tuple[str, str, str]]:
    found = report["agreement_with_volume"]
    psnr, overlap = float(found["psnr_db"]), float(found["silhouette_iou"])
    explained = "How far the asset looks like the shape that it was made of; 30 dB is hard to tell apart."
    yield "Like its volume", f"{psnr:.1f} dB, outline {percent(overlap)}", explained


def _picture(report: Any) -> Iterator[tuple[str, str, str]]:
    found = report["picture"]
    psnr, overlap = float(found["psnr_db"]), float(found["silhouette_iou"])
    explained = "How far the asset looks like the picture, seen from where the picture was taken."
    yield "Like its picture", f"{psnr:.1f} dB, outline {percent(overlap)}", explained
    turn, up = float(found["azimuth_degrees"]), float(found["elevation_degrees"])
    value = f"{abs(turn):.0f}° to the {'right' if turn >= 0 else 'left'}, {abs(up):.0f}° {'up' if up >= 0 else 'down'}"
    yield "Camera", value, "Where the picture was taken from, seen from the front of the asset."


def _seconds(report: Any) -> Iterator[tuple[str, str, str]]:
    taken = {str(name): float(seconds) for name, seconds in report["seconds"].items()}
    explained = ", ".join(f"{name} {duration(seconds)}" for name, seconds in taken.items() if seconds >= 0.05)
    yield "Made in", duration(sum(taken.values())), explained + "."


def _memory(report: Any) -> Iterator[tuple[str, str, str]]:
    yield "Memory", f"{float(report['peak_memory_bytes']) / 1e9:.1f} GB", "The most that the run took at any moment."


TOLD: tuple[Callable[[Any], Iterator[tuple[str, str, str]]], ...] = (
    _surface,
    _size,
    _volume,
    _texture,
    _agreement,
    _picture,
    _seconds,
    _memory,
)
