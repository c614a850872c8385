# Parameters, gradients and moments dealt out over the GPUs, in place of a copy on each. Checkpoints stay
# whole files, which any other config loads. For torchrun or srun; with one process nothing changes.
model_wrapper_cfg = dict(type='FullyShardedModel')
custom_hooks = [dict(type='RichProgressHook')]  # HealthHook reads whole gradients
