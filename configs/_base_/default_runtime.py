custom_imports = dict(imports=['bevfusion_enhanced'], allow_failed_imports=False)
default_scope = 'mmdet3d'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='PartialLoadCheckpointHook', interval=1, more_epochs='stretch'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    dataset=dict(type='DatasetHook'),
    visualization=dict(type='ShowDirHook'))  # for tools/test.py --show-dir of MMDetection3D
monitoring = dict(  # of HealthHook; tools/train.py puts it there, however a config or --cfg-options changes it
    interval=50, cosine_interval=200, update_interval=100, warn_norm=None, warn_share=0.05,
    auxiliary_ratio=5.0, max_bad_steps=10)
custom_hooks = [dict(type='RichProgressHook'), dict(type='HealthHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'

vis_backends = [dict(type='RunLocalVisBackend'), dict(type='RunTensorboardVisBackend')]
visualizer = dict(type='BEVFusionVisualizer', vis_backends=vis_backends, name='visualizer')

load_from = None
resume = False
