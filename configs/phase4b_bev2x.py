# phase4a_task_gca with every BEV map twice as fine: both sensors at 360 x 360 cells of 0.3 m, the map
# at 0.25 m. No weight changes its shape, so a checkpoint of phase 4a loads whole.
_base_ = './phase4a_task_gca.py'

out_size_factor = 4  # 1440 / 4 = 360
map_bound = [-50.0, 50.0, 0.25]  # 400 x 400 cells

model = dict(
    encoders=dict(
        camera=dict(
            vtransform=dict(xbound=[-54.0, 54.0, 0.15], ybound=[-54.0, 54.0, 0.15])),  # 720 / 2
        lidar=dict(backbone=dict(strides=[2, 2, [1, 1, 2]]))),  # the last halving along z alone
    heads=dict(
        object=dict(
            train_cfg=dict(out_size_factor=out_size_factor, min_radius=4),  # cells: as many metres
            test_cfg=dict(out_size_factor=out_size_factor),
            bbox_coder=dict(out_size_factor=out_size_factor)),
        map=dict(
            grid_transform=dict(
                input_scope=[[-54.0, 54.0, 0.3], [-54.0, 54.0, 0.3]],
                output_scope=[map_bound, map_bound]))))

fine = dict(LoadBEVMapMasks=dict(xbound=map_bound, ybound=map_bound))
train_pipeline = [dict(step, **fine.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **fine.get(step['type'], {})) for step in _base_.test_pipeline]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
