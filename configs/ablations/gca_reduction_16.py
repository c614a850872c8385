_base_ = '../phase4a_task_gca.py'

ablation = dict(question='Gates of a sixteenth as many hidden channels (the reference: a quarter)')
model = dict(task_gca=dict(reduction=16))
