_base_ = '../phase4a_task_gca.py'

ablation = dict(question='No gate before the heads')
model = dict(task_gca=dict(mode='none'))
