"""Going on from a checkpoint: whether a run may, and all of its state that is not weights."""
