"""The cards of this machine, of every platform."""

from __future__ import annotations

from alula.host.cards import alveo, zynq
from alula.host.cards.link import Found


def cards_here() -> list[Found]:
    """Return what XRT and PYNQ see; nothing where neither is installed."""
    return [*alveo.found(), *zynq.found()]


def measured(card: Found) -> dict[str, str]:
    """Return what a card measures, with units; ``-`` where it does not."""
    health = card.health
    return {name: "-" if value is None else f"{value:g} {unit}" for name, value, unit in (
        ("clock", health.clock_mhz, "MHz"), ("temperature", health.temperature_c, "°C"),
        ("power", health.power_w, "W"))}


def describe(card: Found) -> str:
    """Return one line about a card."""
    known = [value for value in measured(card).values() if value != "-"]
    return ", ".join([f"{card.platform} at {card.address}",
                      "in use" if card.in_use else "free", *known])
