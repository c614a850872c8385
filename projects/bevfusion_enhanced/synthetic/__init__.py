"""A simulator that writes nuScenes-format datasets; see `dataset.create_dataset`."""
