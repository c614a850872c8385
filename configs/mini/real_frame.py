# One real nuScenes key frame, boxes only (it has no map and no sweeps), learnt by heart in 100 iterations.
_base_ = './phase3_enhanced_seg.py'

data_root = '../shared/nuscenes_sample/'
ann_file = 'n015-2018-07-24-11-22-45+0800.pkl'
iterations = 100
data_prefix = {sensor: '' for sensor in _base_.data_prefix}  # one folder holds every file

model = dict(heads=dict(map=None), loss_scale=dict(_delete_=True, object=1.0))

left_out = ('LoadBEVMapMasks', 'BEVFusionGlobalRotScaleTrans', 'BEVFusionRandomFlip3D')
sizes = dict(LoadPointsWithSweeps=dict(sweeps_num=0))
fixed = dict(sizes, ImageAug3D=dict(  # the image as in testing: what is learnt is this one frame
    next(step for step in _base_.test_pipeline if step['type'] == 'ImageAug3D'),
    final_dim=_base_.image_size, resize_lim=[0.11, 0.11]))  # 1600 x 900 -> 176 x 99
train_pipeline = [
    dict(step, **fixed.get(step['type'], {})) for step in _base_.train_pipeline
    if step['type'] not in left_out
]
test_pipeline = [
    dict(step, **fixed.get(step['type'], {})) for step in _base_.test_pipeline
    if step['type'] not in left_out
]

frame = dict(
    data_root=data_root,
    ann_file=ann_file,
    data_prefix=data_prefix,
    metainfo=dict(classes=_base_.class_names))
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',
        times=iterations,
        dataset=dict(_base_.train_dataloader.dataset, pipeline=train_pipeline, **frame)))
val_dataloader = None  # nothing is held out, so nothing is evaluated
val_evaluator = None
val_cfg = None
test_dataloader = None
test_evaluator = None
test_cfg = None
frame_dataset = dict(  # the same frame as in testing, to predict on
    _base_.val_dataloader.dataset, pipeline=test_pipeline, **frame)

optim_wrapper = dict(optimizer=dict(lr=2e-3))
train_cfg = dict(max_epochs=1)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=1, end=1),
]
