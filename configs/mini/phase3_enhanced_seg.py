# phase3_enhanced_seg at toy sizes over the synthetic dataset: everything that differs is a size, or
# follows from few epochs with a batch of one (learning rate, warm-up, momentum of the norms, and less
# of what holds learning back: no dropout, small rotations; the flips stay, they help unseen streets).
_base_ = '../phase3_enhanced_seg.py'

data_root = 'data/synthetic/'
point_cloud_range = [-51.2, -51.2, -5.0, 51.2, 51.2, 3.0]
voxel_size = [0.2, 0.2, 0.2]
grid_size = [512, 512, 41]  # (51.2 + 51.2) / 0.2, (5 + 3) / 0.2 + 1
image_size = [64, 176]
map_bound = [-30.0, 30.0, 0.75]  # 80 x 80 cells, as far as the coarse images show the ground
bev_channels = 64  # 32 + 32
norm_cfg = dict(momentum=0.1)  # hundreds of iterations, not tens of thousands: statistics must keep up

# ---- model
model = dict(
    data_preprocessor=dict(pad_size_divisor=16),  # 176 is no multiple of 32
    encoders=dict(
        camera=dict(
            backbone=dict(
                embed_dims=24, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8], drop_path_rate=0.0),
            neck=dict(in_channels=[48, 96, 192], out_channels=64),
            vtransform=dict(
                in_channels=64,
                out_channels=32,
                image_size=image_size,
                feature_size=[8, 22],
                xbound=[-51.2, 51.2, 0.8],
                ybound=[-51.2, 51.2, 0.8],
                dbound=[1.0, 60.0, 1.0])),
        lidar=dict(
            voxelize=dict(
                point_cloud_range=point_cloud_range,
                voxel_size=voxel_size,
                max_voxels=[40000, 40000]),
            backbone=dict(
                sparse_shape=grid_size,
                norm_cfg=norm_cfg,
                base_channels=8,
                encoder_channels=((8, 16), (16, 32), (32, 32), (32, )),
                encoder_paddings=((0, 1), (0, 1), (0, (1, 1, 0)), (0, )),
                output_channels=32))),
    fuser=dict(in_channels=[32, 64], out_channels=64),
    decoder=dict(
        backbone=dict(
            in_channels=64, out_channels=[64, 96], layer_nums=[2, 3], norm_cfg=norm_cfg),
        neck=dict(in_channels=[64, 96], out_channels=[32, 32], norm_cfg=norm_cfg)),
    heads=dict(
        object=dict(
            num_proposals=100,
            in_channels=bev_channels,
            hidden_channel=64,
            decoder_layer=dict(
                self_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0),
                cross_attn_cfg=dict(embed_dims=64, num_heads=4, dropout=0.0),
                ffn_cfg=dict(embed_dims=64, feedforward_channels=128, ffn_drop=0.0),
                pos_encoding_cfg=dict(num_pos_feats=64)),
            train_cfg=dict(
                point_cloud_range=point_cloud_range, grid_size=grid_size, voxel_size=voxel_size),
            test_cfg=dict(
                grid_size=grid_size, voxel_size=voxel_size[:2], pc_range=point_cloud_range[:2]),
            bbox_coder=dict(pc_range=point_cloud_range[:2], voxel_size=voxel_size[:2])),
        map=dict(
            in_channels=bev_channels,
            grid_transform=dict(
                input_scope=[[-51.2, 51.2, 1.6], [-51.2, 51.2, 1.6]],
                output_scope=[map_bound, map_bound]),
            dropout=0.0,
            decoder_channels=[32, 32, 32, 32])))

# ---- data
sizes = dict(
    LoadPointsWithSweeps=dict(sweeps_num=1),
    LoadBEVMapMasks=dict(data_root=data_root, xbound=map_bound, ybound=map_bound),
    PointsRangeFilter=dict(point_cloud_range=point_cloud_range),
    ObjectRangeFilter=dict(point_cloud_range=point_cloud_range))
train_sizes = dict(
    sizes,
    ImageAug3D=dict(final_dim=image_size, resize_lim=[0.42, 0.50]),
    BEVFusionGlobalRotScaleTrans=dict(
        rot_range=[-0.1, 0.1], scale_ratio_range=[0.98, 1.02], translation_std=0.2))
test_sizes = dict(sizes, ImageAug3D=dict(final_dim=image_size, resize_lim=[0.44, 0.44]))
train_pipeline = [dict(step, **train_sizes.get(step['type'], {})) for step in _base_.train_pipeline]
test_pipeline = [dict(step, **test_sizes.get(step['type'], {})) for step in _base_.test_pipeline]

train_dataloader = dict(
    batch_size=1,
    num_workers=1,
    dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [
    dict(_base_.val_evaluator[0], data_root=data_root, ann_file=data_root + 'nuscenes_infos_val.pkl'),
    _base_.val_evaluator[1],
]
test_evaluator = val_evaluator

# ---- schedule
max_epochs = 5
lr = 1e-3
warmup_iters = 50
optim_wrapper = dict(optimizer=dict(lr=lr))
param_scheduler = [
    dict(_base_.param_scheduler[0], end=warmup_iters),
    dict(_base_.param_scheduler[1], T_max=max_epochs, end=max_epochs),
]
train_cfg = dict(max_epochs=max_epochs, val_interval=10)  # and once after the last epoch
default_hooks = dict(logger=dict(interval=10))
log_processor = dict(window_size=10)
