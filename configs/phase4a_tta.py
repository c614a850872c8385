# phase4a_task_gca tested on twelve views of each sample: four mirrorings, straight on and turned both ways.
_base_ = './phase4a_task_gca.py'

views = [
    dict(type='BEVView', flip_x=flip_x, flip_y=flip_y, rotation_deg=degrees)
    for degrees in (0.0, 22.5, -22.5) for flip_x in (False, True) for flip_y in (False, True)
]
tta_pipeline = [
    *_base_.test_pipeline[:-2],  # images, points and the truth are read once, in the sensor's frame
    dict(type='TestTimeAug', transforms=[views, *[[step] for step in _base_.test_pipeline[-2:]]]),
]
tta_model = dict(
    type='BEVFusionTTAModel',
    map_scope=[_base_.map_bound, _base_.map_bound],
    map_anchors=[0.0, 0.0, 0.0, 0.0, 0.0, 0.5],  # of nuScenes' raster: areas, then the divider
    box_merge='weighted',
    iou_threshold=0.3)
