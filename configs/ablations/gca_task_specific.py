_base_ = '../phase4a_task_gca.py'

ablation = dict(question='The reference: a gate for each task', reference=True)
