# seg_only from the cameras alone, with the original's decoder for them: 128 -> 64 -> 32 cells and back.
_base_ = './seg_only.py'

model = dict(
    encoders=dict(lidar=None),
    fuser=None,
    decoder=dict(
        backbone=dict(
            _delete_=True,
            type='GeneralizedResNet',
            in_channels=80,
            blocks=[[2, 160, 2], [2, 320, 2], [2, 640, 1]]),
        neck=dict(
            _delete_=True,
            type='LSSFPN',
            in_indices=[-1, 0],
            in_channels=[640, 160],
            out_channels=256,
            scale_factor=2)),
    heads=dict(map=dict(in_channels=256)))

unused = ('LoadPointsWithSweeps', 'PointsRangeFilter', 'BEVFusionPointShuffle')
train_pipeline = [step for step in _base_.train_pipeline if step['type'] not in unused]
test_pipeline = [step for step in _base_.test_pipeline if step['type'] not in unused]
modality = dict(use_lidar=False, use_camera=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, modality=modality))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=modality))
test_dataloader = val_dataloader
