"""Runs of experiments: what they reached, and how they compare."""
