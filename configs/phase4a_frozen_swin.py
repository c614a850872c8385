# phase4a_task_gca with the image backbone as it was loaded: no gradients, no drop of paths.
#     --load-from phase3.pth   or   --load-from phase3.pth encoders.camera.backbone=swin.pth
_base_ = './phase4a_task_gca.py'

model = dict(encoders=dict(camera=dict(backbone=dict(frozen_stages=4))))
