"""The loop over epochs: how an update is made of a batch, and how signals end a training."""
