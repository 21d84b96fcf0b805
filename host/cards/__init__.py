"""Boards as devices: one driver (:mod:`alula.host.cards.card`) for all of them, and what it needs.

A *link* is how a host reaches an accelerator: :mod:`alula.host.cards.alveo` by XRT,
:mod:`alula.host.cards.zynq` by PYNQ. Their packages are loaded when a card is looked for.
"""
