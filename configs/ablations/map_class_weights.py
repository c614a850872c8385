_base_ = '../phase4a_task_gca.py'

ablation = dict(question='Losses of rare map classes count more')
model = dict(
    heads=dict(
        map=dict(
            loss_weight=dict(
                ped_crossing=2.0, walkway=1.5, stop_line=3.0, carpark_area=2.0, divider=2.0))))
