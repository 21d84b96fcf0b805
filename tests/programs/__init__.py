"""Random legal programs, run on the golden model and on the generated Verilog, every byte compared.

:mod:`assembly` puts a program together, :mod:`generate` makes random ones, :mod:`pair` runs them on
both, :mod:`tags` says what a run has covered, :mod:`report` counts it.
"""
