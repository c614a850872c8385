_base_ = '../phase4a_task_gca.py'

ablation = dict(question='One classifier for all map classes')
model = dict(heads=dict(map=dict(per_class_classifiers=False)))
