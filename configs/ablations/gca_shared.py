_base_ = '../phase4a_task_gca.py'

ablation = dict(question='One gate for all tasks')
model = dict(task_gca=dict(mode='shared'))
