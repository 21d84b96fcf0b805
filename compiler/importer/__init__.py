"""ONNX files to the canonical graph, with a report of what became of every node.

The walk (``lowering``) gives each value a meaning (``values``); one module an operator family holds
the functions that do so: ``linear``, ``nbits``, ``dequantize``, ``norms``, ``rotary``,
``attention``, ``scores``, ``functions``, ``arithmetic``, ``layout``. What does not depend on the
tokens is evaluated with numpy (``evaluate``), so masks and rotary angles are known by their
numbers, whatever operators compute them.
"""

from alula.compiler.importer.coverage import Coverage, Disposition, Entry, Refused
from alula.compiler.importer.entry import import_model, read_coverage

__all__ = ["Coverage", "Disposition", "Entry", "Refused", "import_model", "read_coverage"]
