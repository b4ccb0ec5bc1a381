"""What there is to compute on: GPU types, and the machine one stands at."""
