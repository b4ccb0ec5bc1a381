"""How the facts for planning are known that a router gives (router/dashboard/planning.py) and `plan --live` reads."""

KEY = "pdserve_planning"  # in every answer, with the format's number
FORMAT = 2
PATH = "/dashboard/planning"
