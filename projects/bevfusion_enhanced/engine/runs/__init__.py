"""What a run writes to its folder over all its starts, and what it must not overwrite there."""
