# phase4a_task_gca without cameras: the decoder takes the LiDAR's map as it is. No image is read.
_base_ = './phase4a_task_gca.py'

model = dict(encoders=dict(camera=None), fuser=None)

unused = ('LoadMultiViewImages', 'ImageAug3D')
train_pipeline = [step for step in _base_.train_pipeline if step['type'] not in unused]
test_pipeline = [step for step in _base_.test_pipeline if step['type'] not in unused]
modality = dict(use_lidar=True, use_camera=False)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline, modality=modality))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, modality=modality))
test_dataloader = val_dataloader
