custom_imports = dict(imports=['bevfusion_enhanced'], allow_failed_imports=False)
default_scope = 'mmdet3d'

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='PartialLoadCheckpointHook', interval=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    dataset=dict(type='DatasetHook'))
custom_hooks = [dict(type='RichProgressHook')]

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'

vis_backends = [dict(type='RunLocalVisBackend'), dict(type='RunTensorboardVisBackend')]
visualizer = dict(type='Visualizer', vis_backends=vis_backends, name='visualizer')

load_from = None
resume = False
