"""Operators: plain PyTorch, one file each."""
