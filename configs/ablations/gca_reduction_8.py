_base_ = '../phase4a_task_gca.py'

ablation = dict(question='Gates of an eighth as many hidden channels (the reference: a quarter)')
model = dict(task_gca=dict(reduction=8))
