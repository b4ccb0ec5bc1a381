"""What `pdserve profile` measures: steps of the real engine, transfers, and the delays around them."""
