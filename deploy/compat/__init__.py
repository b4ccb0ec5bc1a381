"""`--compat`: the simulators that obey DistServe's and Splitwise's rules, as modes of `simulate` and `plan`."""
