"""Boards as devices: one driver for all of them (:mod:`alula.host.cards.card`), and what it stands on.

A *link* is how a host reaches an accelerator: :mod:`alula.host.cards.alveo` by XRT,
:mod:`alula.host.cards.zynq` by PYNQ. Their packages are loaded when a card is looked for.
"""
