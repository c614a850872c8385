# Batch norms see the samples of all GPUs. They need GPUs; with one process nothing changes.
sync_bn = 'torch'
