# nuscenes.py, with objects of a GT database pasted into the scans of the first epochs:
#     python tools/create_data.py --root-path data/nuscenes --gt-database
# The images do not show them, so a model with cameras needs its last epochs without (five of twenty).
_base_ = './nuscenes.py'

paste_epochs = 15
object_sample = dict(
    type='BEVFusionObjectSample',
    info_path=_base_.data_root + 'nuscenes_dbinfos_train.pkl',
    classes=_base_.class_names,
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
    stop_epoch=paste_epochs)
object_sample_place = [step['type'] for step in _base_.train_pipeline].index('LoadAnnotations3D') + 1
train_pipeline = [
    *_base_.train_pipeline[:object_sample_place], object_sample,
    *_base_.train_pipeline[object_sample_place:]
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
