"""Workers as child processes of this one, on this machine."""
