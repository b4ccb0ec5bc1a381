"""What each subcommand of `pdserve` does; imported only when it is called."""
