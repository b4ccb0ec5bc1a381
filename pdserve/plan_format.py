"""How a plan file is known: `pdserve plan` writes it, `pdserve serve --plan` reads it without loading the planner."""

KEY = "pdserve_plan"  # in every plan file, with the format's number
FORMAT = 1
