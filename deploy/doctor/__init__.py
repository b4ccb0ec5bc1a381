"""`pdserve doctor`: what a cluster on this machine would stumble over, found before traffic does."""
