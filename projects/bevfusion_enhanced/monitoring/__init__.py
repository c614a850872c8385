"""Whether a training is healthy: what is measured, what it means, and what to try.

    step_watch -> statistics -> measurements {name: number} -> rules -> diagnosis -> record

Everything here works on tensors, numbers and text; `engine/hooks/health_hook.py` connects it to a
run. Importing this package needs nothing but torch and NumPy.

Measurements of an epoch, by name (`*` stands for a task, module, class or parameter group):

    losses.auxiliary_ratio          auxiliary over main losses of all tasks
    losses.total.*                  mean, first, last; rise: mean over that of the epoch before
    losses.term.<logged name>.*     mean, first, last
    losses.task.*                   mean, share, main, auxiliary, auxiliary_ratio
    losses.layer.<task>.<i>         mean of all losses of decoder layer i
    losses.depth.<task>             first layer over last layer
    gradients.total.*               steps, min, max, median, min_step, max_step, share_over_warn
    gradients.module.<module>.*     the same, and share: of the squared norm
    gradients.clipped.*             share of steps, mean_factor, strongest_factor
    gradients.growth, .after_resume median over that of the epoch before; the latter after a resume
    steps.*                         updates, nonfinite, longest_row, overflow, overflow_share,
                                    resumed
    cosine.<a>~<b>.*                mean, negative_share, looks
    learning_rate.<group>.*         first, last, max
    updates.module.*, updates.group.*   mean, max: norm of a step over the norm of the weights
    classes.<task>.<class>.*        truths, and positives or predicted, while training
    validation.*                    <task>.valid, class.<task>.<class>, metric.<name>
    weights.*                       changed, nonfinite, changed_on_load
"""
