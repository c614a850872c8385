"""What is not healthy, as data: conditions on measurements, likely causes, what to try.

A quantity is a measurement's name (see the package), with one `*` for anything. What the `*` stood
for is `{item}` in every other text and quantity of the rule. `{value}` is the value that fired it,
and `{limit}` what it was held against. The value of a rule's first condition is its threshold,
which a config sets by the rule's name.
"""
from dataclasses import dataclass
from typing import Tuple


@dataclass(frozen=True)
class Condition:
    """A measurement held against a number.

    Attributes:
        quantity: name of the measurement.
        op: '>' or '<'.
        value: the number; a measurement that is not there never fulfils it.
    """

    quantity: str
    op: str
    value: float


@dataclass(frozen=True)
class Cause:
    """Something that explains a finding.

    Attributes:
        text: what it is.
        likely: what speaks for it; where all of these hold it comes before the others.
        evidence: measurements to be shown with it.
        change: what to try, as a line of a config or as an action; `{class}` is the last part of
            the item.
    """

    text: str
    likely: Tuple[Condition, ...] = ()
    evidence: Tuple[str, ...] = ()
    change: str = ''


@dataclass(frozen=True)
class Rule:
    """A finding and its causes, the likeliest first.

    Attributes:
        name: by which a config sets its threshold.
        message: what was found.
        when: all must hold.
        causes: in the order of likelihood where nothing was measured.
        question: what the next validation, or epoch, should answer.
    """

    name: str
    message: str
    when: Tuple[Condition, ...]
    causes: Tuple[Cause, ...]
    question: str = ''


_LOWER_RATE = 'lower optim_wrapper.optimizer.lr to a third, or lengthen the warm-up'
_RESUMED = Condition('steps.resumed', '>', 0)
_DAMAGED = Condition('weights.changed_on_load', '>', 0)

RULES: Tuple[Rule, ...] = (
    Rule('nonfinite_steps',
         '{value:.0f} steps were skipped because the loss or the gradient was not finite',
         (Condition('steps.nonfinite', '>', 0),),
         (Cause('the weights came damaged from a checkpoint', (_DAMAGED,),
                ('weights.changed_on_load', 'weights.nonfinite'),
                'load an earlier checkpoint; tools/checkpoint.py inspect tells which are whole'),
          Cause('the learning rate is too high: gradients grew before',
                (Condition('gradients.growth', '>', 3.0),),
                ('gradients.growth', 'gradients.total.max', 'gradients.total.median'),
                _LOWER_RATE),
          Cause('single samples are broken, such as empty clouds or boxes without extent',
                (Condition('steps.longest_row', '<', 2),),
                ('steps.longest_row',),
                'look at the samples whose tokens are listed under Warnings'),
          Cause('half precision overflows', (Condition('steps.overflow', '>', 0),),
                ('steps.overflow',), "optim_wrapper.dtype='bfloat16', or train without AMP")),
         'Do the same samples fail again?'),
    Rule('loss_scale_overflow',
         '{value:.0%} of the steps overflowed under the loss scaler',
         (Condition('steps.overflow_share', '>', 0.05),),
         (Cause('float16 has too little range for these gradients', (),
                ('steps.overflow', 'gradients.total.max'), "optim_wrapper.dtype='bfloat16'"),
          Cause('the gradient explodes', (Condition('gradients.growth', '>', 3.0),),
                ('gradients.growth',), _LOWER_RATE))),
    Rule('damaged_checkpoint',
         '{value:.0f} tensors are not what they were when the checkpoint was written',
         (Condition('weights.changed_on_load', '>', 0),),
         (Cause('the file was damaged or edited after it was written', (),
                ('weights.changed_on_load', 'weights.nonfinite'),
                '--resume from an earlier checkpoint; tools/checkpoint.py inspect FILE'),),
         'Are the metrics those of the last validation before the resume?'),
    Rule('weights_jumped',
         '{value:.0f} tensors changed by more than tenfold within an epoch, or are not finite',
         (Condition('weights.changed', '>', 0),),
         (Cause('the gradient exploded', (Condition('gradients.growth', '>', 3.0),),
                ('gradients.growth', 'gradients.total.max'), _LOWER_RATE),
          Cause('fresh modules learn from small initial values', (),
                ('weights.changed',), 'nothing, where the tensors named are of fresh modules'))),
    Rule('explosion_after_resume',
         'the gradient is {value:.1f} times as large as before the run was resumed',
         (Condition('gradients.after_resume', '>', 3.0),),
         (Cause('the checkpoint is damaged', (_DAMAGED,),
                ('weights.changed_on_load',), '--resume from an earlier checkpoint'),
          Cause('the optimizer or schedule began anew, at a rate that trained weights do not bear',
                (Condition('losses.total.rise', '>', 1.5),),
                ('losses.total.rise', 'gradients.total.median'),
                'resume with the same schedule, or ' + _LOWER_RATE),
          Cause('data or augmentation changed', (), ('losses.total.rise',),
                'compare the configs: tools/experiments.py compare')),
         'Did the metrics fall against the last validation before the resume?'),
    Rule('gradient_explosion',
         'the median gradient is {value:.1f} times that of the epoch before',
         (Condition('gradients.growth', '>', 10.0), Condition('losses.total.rise', '>', 1.0)),
         (Cause('the learning rate is too high', (Condition('losses.total.rise', '>', 1.2),),
                ('losses.total.rise', 'gradients.total.max', 'gradients.clipped.share'),
                _LOWER_RATE),
          Cause('nothing bounds the gradient', (Condition('gradients.clipped.share', '<', 0.01),),
                ('gradients.clipped.share',), 'optim_wrapper.clip_grad=dict(max_norm=35)'))),
    Rule('gradient_over_warn',
         'the gradient was over warn_norm on {value:.0%} of the steps',
         (Condition('gradients.total.share_over_warn', '>', 0.05),),
         (Cause('auxiliary losses dominate', (Condition('losses.auxiliary_ratio', '>', 5.0),),
                ('losses.auxiliary_ratio',),
                'lower model.heads.map.aux_weight, or model.heads.object.auxiliary=False'),
          Cause('the learning rate is too high', (Condition('losses.total.rise', '>', 1.0),),
                ('losses.total.rise', 'gradients.total.median', 'gradients.total.max'),
                _LOWER_RATE),
          Cause('clipping is too loose or off', (Condition('gradients.clipped.share', '<', 0.01),),
                ('gradients.clipped.share',), 'optim_wrapper.clip_grad=dict(max_norm=35)'),
          Cause('this model has gradients of that size', (), ('gradients.total.median',),
                'raise monitoring.warn_norm'))),
    Rule('always_clipped',
         'clipping bit on {value:.0%} of the steps',
         (Condition('gradients.clipped.share', '>', 0.9),
          Condition('gradients.clipped.mean_factor', '<', 0.5)),
         (Cause('max_norm is below the usual gradient: every step has the same length', (),
                ('gradients.clipped.mean_factor', 'gradients.total.median'),
                'raise optim_wrapper.clip_grad.max_norm to the median norm'),
          Cause('the gradient is too large', (Condition('gradients.growth', '>', 2.0),),
                ('gradients.growth',), _LOWER_RATE))),
    Rule('auxiliary_dominates',
         'auxiliary losses of {item} are {value:.1f} times its main losses',
         (Condition('losses.task.*.auxiliary_ratio', '>', 5.0),),
         (Cause('an early decoder layer is far worse than the last',
                (Condition('losses.depth.{item}', '>', 3.0),),
                ('losses.depth.{item}', 'losses.task.{item}.auxiliary', 'losses.task.{item}.main'),
                'model.heads.{item}.auxiliary=False, or fewer num_decoder_layers'),
          Cause('the auxiliary branch weighs too much', (),
                ('losses.task.{item}.auxiliary', 'losses.task.{item}.main'),
                'lower model.heads.{item}.aux_weight')),
         'Do the metrics of {item} still rise, or only its auxiliary losses fall?'),
    Rule('first_layer_worst',
         'the first decoder layer of {item} has {value:.1f} times the loss of the last',
         (Condition('losses.depth.*', '>', 3.0),),
         (Cause('the proposals that the first layer starts from are poor', (),
                ('losses.layer.{item}.0',),
                'warm the heatmap up: train with num_decoder_layers=1 first'),
          Cause('the first layer was initialised afresh while the rest was trained',
                (_RESUMED,), ('losses.layer.{item}.0',),
                'load all decoder layers from the same checkpoint')),
         'Does the depth ratio of {item} fall?'),
    Rule('task_starved',
         'the losses of {item} are {value:.1%} of the total',
         (Condition('losses.task.*.share', '<', 0.02),),
         (Cause('its loss is in smaller units than that of the other tasks', (),
                ('losses.task.{item}.mean', 'losses.total.mean'),
                "model.loss_scale.{item}=10.0, or model.task_balance=dict(type='GradNorm')"),
          Cause('it is learnt already', (Condition('losses.total.rise', '<', 1.0),),
                ('losses.task.{item}.mean',), 'nothing, where its metrics are good')),
         'How good are the metrics of {item}?'),
    Rule('tasks_fight',
         'the gradients of {item} on the shared map oppose each other: mean cosine {value:.2f}',
         (Condition('cosine.*.mean', '<', -0.2), Condition('cosine.{item}.looks', '>', 2)),
         (Cause('the tasks want different features of one map', (),
                ('cosine.{item}.mean', 'cosine.{item}.negative_share'),
                "model.task_balance=dict(type='PCGrad'), or "
                "model.task_gca=dict(mode='task_specific', ...)"),)),
    Rule('fresh_group_too_fast',
         'a step moves the parameters of group {item} by {value:.1%} of their size',
         (Condition('updates.group.*.mean', '>', 0.05),
          Condition('learning_rate.{item}.last', '>', 0)),
         (Cause('the learning rate of the group is too high',
                (Condition('losses.total.rise', '>', 1.0),),
                ('learning_rate.{item}.last', 'updates.group.{item}.max'),
                'lower lr_mult of the group, or lengthen its warm-up'),
          Cause('its parameters are small since they began at zero', (),
                ('updates.group.{item}.mean',), 'nothing, where it falls by itself')),
         'Does the loss of what is fresh fall without that of the rest rising?'),
    Rule('module_stands_still',
         'a step moves {item} by only {value:.1e} of its size',
         (Condition('updates.module.*.max', '<', 1e-7),),
         (Cause('its learning rate is (nearly) zero or it is frozen', (),
                ('updates.module.{item}.max', 'gradients.module.{item}.median'),
                'raise its lr_mult in optim_wrapper.paramwise_cfg'),
          Cause('no gradient reaches it',
                (Condition('gradients.module.{item}.max', '<', 1e-12),),
                ('gradients.module.{item}.max',), 'check that its output is used'))),
    Rule('loss_rises',
         'the loss is {value:.2f} times that of the epoch before',
         (Condition('losses.total.rise', '>', 1.2),),
         (Cause('gradients grew: the learning rate is too high',
                (Condition('gradients.growth', '>', 2.0),), ('gradients.growth',), _LOWER_RATE),
          Cause('what is trained changed with the resume', (_RESUMED,), ('steps.resumed',),
                'compare the configs: tools/experiments.py compare'),
          Cause('the task balance changed the weights', (), ('losses.total.mean',),
                'compare the unweighted stats'))),
    Rule('dead_detection_class',
         'class {item} was annotated but never matched to a proposal',
         (Condition('classes.*.positives', '<', 1),
          Condition('classes.{item}.truths', '>', 0)),
         (Cause('its boxes lie outside the range, or there are too few proposals', (),
                ('classes.{item}.truths', 'classes.{item}.positives'),
                'raise model.heads.object.num_proposals; check ObjectRangeFilter'),),
         'Is AP of {item} above zero?'),
    Rule('absent_class',
         'class {item} does not occur in the training data',
         (Condition('classes.*.truths', '<', 1), Condition('steps.updates', '>', 50)),
         (Cause('its name is spelt differently in the info file, or a filter drops it', (),
                ('classes.{item}.truths', 'steps.updates'),
                'check the class names and ObjectNameFilter; with few samples use CBGSDataset'),),
         'Does {item} occur in the validation set?'),
    Rule('dead_map_class',
         'class {item} occurs but was never predicted in training',
         (Condition('classes.*.predicted', '<', 1),
          Condition('classes.{item}.truths', '>', 0)),
         (Cause('it covers so few cells that predicting nothing is cheapest', (),
                ('classes.{item}.truths', 'classes.{item}.predicted'),
                'model.heads.map.loss_weight=dict({class}=2.0), or a higher '
                'model.heads.map.dice_weight'),),
         'Is IoU of {item} above zero?'),
    Rule('no_valid_predictions',
         'validation of {item} has no valid prediction',
         (Condition('validation.*.valid', '<', 1),),
         (Cause('the weights are not finite or damaged', (Condition('weights.changed', '>', 0),),
                ('weights.changed', 'weights.nonfinite'), 'go back to an earlier checkpoint'),
          Cause('all scores are below the threshold: trained too little', (),
                ('losses.task.{item}.mean', 'validation.{item}.valid'),
                'train longer before validating, or lower monitoring.score_threshold'))),
    Rule('never_predicted_in_validation',
         'class {item} is never predicted in validation',
         (Condition('validation.class.*', '<', 1),),
         (Cause('it is not learnt yet: the training has only begun', (Condition('epoch', '<', 4),),
                ('epoch', 'classes.{item}.truths'), 'train on'),
          Cause('it is too rare in training', (Condition('classes.{item}.truths', '<', 100),),
                ('classes.{item}.truths', 'validation.class.{item}'),
                'model.heads.map.loss_weight=dict({class}=2.0) for a class of the map; the data of '
                'configs/_base_/datasets/nuscenes_cbgs.py for one of boxes'),
          Cause('its scores stay below the threshold', (), ('validation.class.{item}',),
                'look at its AP or IoU; where they rise, lower monitoring.score_threshold (boxes) '
                'or monitoring.map_threshold')),
         'Do AP or IoU of {item} leave zero?'),
)
