"""The bundled model: its int4 files, and the scripts that trained and exported them."""
