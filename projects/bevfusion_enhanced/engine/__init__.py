"""Hooks and runner glue: what connects `checkpoints/` and the command lines to MMEngine."""
