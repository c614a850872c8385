# phase4a_task_gca with its parameters dealt out over the GPUs, and Swin's activations computed twice
# rather than kept: for less memory.
_base_ = './phase4a_task_gca.py'

model = dict(encoders=dict(camera=dict(backbone=dict(with_cp=True))))
model_wrapper_cfg = dict(type='FullyShardedModel')
custom_hooks = [dict(type='RichProgressHook')]  # HealthHook reads whole gradients
