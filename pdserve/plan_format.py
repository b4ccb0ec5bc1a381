"""How a plan file is known: `pdserve plan` writes it, `pdserve serve --plan` reads it without loading the planner."""

KEY = "pdserve_plan"  # in every plan file, with the format's number
FORMAT = 1
ANY_WORKER = "worker"  # the GPU of a plan that was made of a running cluster's own workers, whatever they run on
