"""What a command line of `tools/` does, as functions."""
