# phase4a_task_gca without LiDAR: depth from the images alone, and the original's decoder for cameras
# (180 -> 90 -> 45 cells and back). No point is read; boxes are those of phase 4a.
_base_ = './phase4a_task_gca.py'

bev_channels = 256

model = dict(
    encoders=dict(camera=dict(vtransform=dict(type='LSSTransform')), lidar=None),
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
            out_channels=bev_channels,
            scale_factor=2)),
    task_gca=dict(in_channels=bev_channels),
    heads=dict(object=dict(in_channels=bev_channels), map=dict(in_channels=bev_channels)))

unused = ('LoadPointsWithSweeps', 'PointsRangeFilter', 'BEVFusionPointShuffle')
train_pipeline = [step for step in _base_.train_pipeline if step['type'] not in unused]
test_pipeline = [step for step in _base_.test_pipeline if step['type'] not in unused]
modality = dict(use_lidar=False, use_camera=True)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, modality=modality))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=modality))
test_dataloader = val_dataloader
