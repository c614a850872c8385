"""Hooks that stand beside a training: they watch it, show it and write it down."""
