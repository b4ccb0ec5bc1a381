"""How long a step takes: from a model's shape and a GPU's data sheet, or fitted to measurements."""
