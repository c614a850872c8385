# Map segmentation alone, as the original BEVFusion trains it: cameras (without LiDAR depth) and LiDAR
# to +-51.2 m on a grid of 128 x 128 cells of 0.8 m. Its published checkpoint loads whole. The original
# has a cyclic rate and CBGS; the schedule here is that of the other configs.
_base_ = './phase1_baseline.py'

point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.1, 0.1, 0.2]
grid_size = [1024, 1024, 41]  # (51.2 + 51.2) / 0.1, (5 + 3) / 0.2 + 1

model = dict(
    encoders=dict(
        camera=dict(
            backbone=dict(drop_path_rate=0.3),
            vtransform=dict(
                type='LSSTransform', xbound=[-51.2, 51.2, 0.4], ybound=[-51.2, 51.2, 0.4])),
        lidar=dict(
            voxelize=dict(
                point_cloud_range=point_cloud_range,
                voxel_size=voxel_size,
                max_voxels=[90000, 120000]),
            backbone=dict(sparse_shape=grid_size))),
    heads=dict(
        object=None,
        map=dict(grid_transform=dict(input_scope=[[-51.2, 51.2, 0.8], [-51.2, 51.2, 0.8]]))),
    loss_scale=dict(_delete_=True, map=1.0))

unused = ('LoadAnnotations3D', 'ObjectRangeFilter', 'ObjectNameFilter')
ranges = dict(PointsRangeFilter=dict(point_cloud_range=point_cloud_range))
train_pipeline = [
    dict(step, **ranges.get(step['type'], {})) for step in _base_.train_pipeline
    if step['type'] not in unused
]
test_pipeline = [dict(step, **ranges.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [
    evaluator for evaluator in _base_.val_evaluator if evaluator['type'] == 'BEVMapIoUMetric'
]
test_evaluator = val_evaluator

optim_wrapper = dict(optimizer=dict(lr=1e-4))
