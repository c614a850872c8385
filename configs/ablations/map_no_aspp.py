_base_ = '../phase4a_task_gca.py'

ablation = dict(question='A 1x1 convolution in place of ASPP')
model = dict(heads=dict(map=dict(use_aspp=False)))
