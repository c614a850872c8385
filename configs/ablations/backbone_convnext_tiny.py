_base_ = '../phase4a_task_gca.py'

ablation = dict(question="timm's convnext_tiny in place of Swin-T (not pretrained, where a checkpoint is loaded)")
model = dict(
    encoders=dict(
        camera=dict(
            backbone=dict(
                _delete_=True,
                type='TimmBackbone',
                model_name='convnext_tiny',
                out_indices=[1, 2, 3],
                drop_path_rate=0.2),
            neck=dict(in_channels=[192, 384, 768]))))
