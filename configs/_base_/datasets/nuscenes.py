# nuScenes with boxes and map masks: six cameras at 256 x 704, the LiDAR key frame and nine sweeps.
dataset_type = 'NuScenesMultiTaskDataset'
data_root = 'data/nuscenes/'
class_names = [
    'car', 'truck', 'construction_vehicle', 'bus', 'trailer', 'barrier', 'motorcycle', 'bicycle',
    'pedestrian', 'traffic_cone'
]
map_classes = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider']
map_bound = [-50.0, 50.0, 0.5]  # along x and y: 200 x 200 cells of half a metre
sweeps_num = 9
final_dim = [256, 704]
data_range = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]

metainfo = dict(classes=class_names, map_classes=map_classes)
input_modality = dict(use_lidar=True, use_camera=True)
data_prefix = dict(
    pts='samples/LIDAR_TOP',
    sweeps='sweeps/LIDAR_TOP',
    CAM_FRONT='samples/CAM_FRONT',
    CAM_FRONT_LEFT='samples/CAM_FRONT_LEFT',
    CAM_FRONT_RIGHT='samples/CAM_FRONT_RIGHT',
    CAM_BACK='samples/CAM_BACK',
    CAM_BACK_RIGHT='samples/CAM_BACK_RIGHT',
    CAM_BACK_LEFT='samples/CAM_BACK_LEFT')

load_map = dict(
    type='LoadBEVMapMasks',
    data_root=data_root,
    classes=map_classes,
    xbound=map_bound,
    ybound=map_bound)
load_points = dict(type='LoadPointsWithSweeps', sweeps_num=sweeps_num, load_dim=5, use_dim=5)
object_sample = dict(  # not in the pipeline below: see nuscenes_gt_paste.py
    type='BEVFusionObjectSample',
    info_path=data_root + 'nuscenes_dbinfos_train.pkl',
    classes=class_names,
    sample_groups=dict(
        car=2,
        truck=3,
        construction_vehicle=7,
        bus=4,
        trailer=6,
        barrier=2,
        motorcycle=6,
        bicycle=6,
        pedestrian=2,
        traffic_cone=2),
    min_points=5,
    stop_epoch=15)  # of twenty

train_pipeline = [
    dict(type='LoadMultiViewImages', reduction='auto'),
    load_points,
    dict(type='LoadAnnotations3D', with_bbox_3d=True, with_label_3d=True, with_attr_label=False),
    dict(
        type='ImageAug3D',
        final_dim=final_dim,
        resize_lim=[0.38, 0.55],
        bot_pct_lim=[0.0, 0.0],
        rot_lim=[-5.4, 5.4],
        rand_flip=True,
        is_train=True),
    dict(
        type='BEVFusionGlobalRotScaleTrans',
        scale_ratio_range=[0.9, 1.1],
        rot_range=[-0.78539816, 0.78539816],
        translation_std=0.5),
    dict(type='BEVFusionRandomFlip3D'),
    load_map,
    dict(type='PointsRangeFilter', point_cloud_range=data_range),
    dict(type='ObjectRangeFilter', point_cloud_range=data_range),
    dict(type='ObjectNameFilter', classes=class_names),
    dict(type='BEVFusionPointShuffle'),
    dict(type='PackBEVFusionInputs'),
]
test_pipeline = [
    dict(type='LoadMultiViewImages', reduction='auto'),
    load_points,
    dict(
        type='ImageAug3D',
        final_dim=final_dim,
        resize_lim=[0.48, 0.48],
        bot_pct_lim=[0.0, 0.0],
        rot_lim=[0.0, 0.0],
        rand_flip=False,
        is_train=False),
    load_map,
    dict(type='PointsRangeFilter', point_cloud_range=data_range),
    dict(type='PackBEVFusionInputs'),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_train.pkl',
        pipeline=train_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        data_prefix=data_prefix,
        test_mode=False,
        use_valid_flag=True,
        box_type_3d='LiDAR'))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file='nuscenes_infos_val.pkl',
        pipeline=test_pipeline,
        metainfo=metainfo,
        modality=input_modality,
        data_prefix=data_prefix,
        test_mode=True,
        use_valid_flag=True,
        box_type_3d='LiDAR'))
test_dataloader = val_dataloader

val_evaluator = [
    dict(
        type='NuScenesDetectionMetric',
        data_root=data_root,
        ann_file=data_root + 'nuscenes_infos_val.pkl'),
    dict(type='BEVMapIoUMetric', classes=map_classes),
]
test_evaluator = val_evaluator
