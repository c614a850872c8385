"""Classes are matched by name: the real heads say the same of each class, wherever it stands."""
from collections import OrderedDict

import pytest
import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config

from bevfusion_enhanced.checkpoints.class_matching import (
    heads_with_classes,
    match_classes,
    partly_fresh,
    rearrange,
)
from bevfusion_enhanced.checkpoints.matching import match
from bevfusion_enhanced.errors import CheckpointError
from bevfusion_enhanced.models.heads.enhanced_segmentation import EnhancedBEVSegmentationHead
from bevfusion_enhanced.models.heads.segmentation import BEVSegmentationHead

GRID = dict(input_scope=[[-4, 4, 1]] * 2, output_scope=[[-3, 3, 1], [-2, 2, 1]])
ABC, CAB = ['a', 'b', 'c'], ['c', 'a', 'b']


def enhanced(classes, **changes):
    return EnhancedBEVSegmentationHead(**{**dict(
        in_channels=8, classes=classes, grid_transform=GRID, decoder_channels=[16, 16, 8],
        dropout=0.0), **changes})


def joint(classes):
    return enhanced(classes, per_class_classifiers=False)


def original(classes):
    return BEVSegmentationHead(in_channels=8, classes=classes, grid_transform=GRID)


@pytest.fixture(scope='module')
def transfusion(repo):
    config = Config.fromfile(repo / 'configs/mini/phase3_enhanced_seg.py').model.heads.object

    def build(classes):
        return MODELS.build(config.copy() | dict(num_classes=len(classes), nms_free_classes=[]))

    return build


@pytest.fixture(params=['enhanced', 'joint', 'original', 'transfusion'])
def kind(request, transfusion):
    """(builder of a head over classes, its name, the name of its list of classes)."""
    build = {'enhanced': enhanced, 'joint': joint, 'original': original,
             'transfusion': transfusion}[request.param]
    if request.param == 'transfusion':
        return build, 'heads.object', 'classes'
    return build, 'heads.map', 'map_classes'


def state_of(head, name):
    """The state dict as within a model, every value another."""
    generator = torch.Generator().manual_seed(0)

    def values(key, value):
        if not value.is_floating_point():
            return value
        drawn = torch.randn(value.shape, generator=generator)
        return 1 + drawn ** 2 if key.endswith('running_var') else drawn * 0.1

    return OrderedDict((f'{name}.{key}', values(key, value))
                       for key, value in head.state_dict().items())


def load(head, name, state):
    head.load_state_dict({key[len(name) + 1:]: value for key, value in state.items()})
    return head.eval()


def by_name(model, weights, name, class_list, *, new, old, **options):
    return match_classes(model, weights, head=name, class_list=class_list, new=new, old=old,
                         **options)


def outputs(head, bev):
    """All that a head says class by class, with the classes along dimension 1."""
    with torch.no_grad():
        result = head(bev)
    if torch.is_tensor(result):
        return [result]
    return [result.dense_heatmap, result.query_heatmap_score,
            *(layer.logits for layer in result.layers)]


def test_the_tables_name_every_tensor_that_depends_on_the_classes(kind):
    build, name, class_list = kind
    three, four = state_of(build(ABC), name), state_of(build([*ABC, 'd']), name)
    found = match_classes(four, three, head=name, class_list=class_list, new=[*ABC, 'd'],
                          old=['x', 'b', 'c'])
    renamed = rearrange(three, [found], initial=four)
    report = match(four, renamed, partly_fresh=partly_fresh(four, [found]))
    assert heads_with_classes(four) == [(name, class_list)]
    assert not report.mismatched
    differing = {key for key in four if key not in three or three[key].shape != four[key].shape}
    assert differing <= set(found.moves) | set(report.fresh)


def test_outputs_follow_their_class(kind):
    build, name, class_list = kind
    theirs = build(ABC)
    weights = state_of(theirs, name)
    found = by_name(weights, weights, name, class_list, new=CAB, old=ABC)
    ours = load(build(CAB), name, rearrange(weights, [found], initial=weights))
    load(theirs, name, weights)
    size = getattr(theirs, 'test_cfg', None)
    channels = 8 if size is None else theirs.shared_conv.in_channels
    cells = (8, 8) if size is None else size.map_size
    bev = torch.randn((1, channels, *cells), generator=torch.Generator().manual_seed(1))
    for old, new in zip(outputs(theirs, bev), outputs(ours, bev), strict=True):
        torch.testing.assert_close(new, old[:, [2, 0, 1]])
        assert not torch.equal(new, old)


def test_there_and_back_is_the_identity(kind):
    build, name, class_list = kind
    state = state_of(build(ABC), name)
    there = by_name(state, state, name, class_list, new=CAB, old=ABC)
    back = by_name(state, state, name, class_list, new=ABC, old=CAB)
    once = rearrange(state, [there], initial=state)
    twice = rearrange(once, [back], initial=state)
    assert sorted(twice) == sorted(state) and not all(
        torch.equal(once[key], state[key]) for key in state)
    for key, value in state.items():
        assert torch.equal(twice[key], value), key


def test_same_classes_in_the_same_order_are_left_alone(kind):
    build, name, class_list = kind
    state = state_of(build(ABC), name)
    assert by_name(state, state, name, class_list, new=ABC, old=tuple(ABC)) is None


def test_new_classes_keep_the_models_own_values_and_others_the_checkpoints(kind):
    build, name, class_list = kind
    new, old = ['d', 'c', 'a'], ABC
    model, weights = build(new).state_dict(), state_of(build(old), name)
    model = OrderedDict((f'{name}.{key}', value.clone()) for key, value in model.items())
    before = {key: value.clone() for key, value in (*model.items(), *weights.items())}
    found = by_name(model, weights, name, class_list, new=new, old=old)
    result = rearrange(weights, [found], initial=model)
    assert (found.kept, found.fresh, found.unused) == (('c', 'a'), ('d',), ('b',))
    assert str(found) == f'{name}: 2 of 3 classes by name; fresh: d; not used: b'
    assert found.moves
    for key, move in found.moves.items():
        rows = [tensor.transpose(0, move.axis)
                for tensor in (result[key], model[key], weights[key])]
        assert torch.equal(rows[0][0], rows[1][0]), key
        assert torch.equal(rows[0][1:], rows[2][[2, 0]]), key
    for key in (*model, *weights):
        assert torch.equal((weights if key in weights else model)[key], before[key]), key


@pytest.mark.parametrize('count, length', [(2, 3), (4, 3), (1, 3), (3, 1)])
def test_fewer_and_more_classes(kind, count, length):
    build, name, class_list = kind
    new, old = list('abcd')[:count], list('abcd')[:length]
    model, weights = state_of(build(new), name), state_of(build(old), name)
    found = by_name(model, weights, name, class_list, new=new, old=old)
    report = match(model, rearrange(weights, [found], initial=model),
                   partly_fresh=partly_fresh(model, [found]))
    assert not report.mismatched
    assert (not report.complete) == (count > length)
    assert len(found.kept) == min(count, length)
    assert sum(record.fresh for record in report.reused) == sum(
        model[key].numel() * (count - length) // count for key in found.moves if count > length)


def test_classes_of_a_module_of_their_own_move_whole():
    model, weights = (state_of(enhanced(names), 'heads.map') for names in (['d', 'c'], ABC))
    found = by_name(model, weights, 'heads.map', 'map_classes', new=['d', 'c'], old=ABC)
    result = rearrange(weights, [found], initial=model)
    report = match(model, result)
    assert torch.equal(result['heads.map.classifiers.1.0.weight'],
                       weights['heads.map.classifiers.2.0.weight'])
    assert {key.rsplit('.', 2)[0] for key in report.fresh} == {'heads.map.classifiers.0'}
    unexpected = {record.key.rsplit('.', 2)[0] for record in report.unexpected}
    assert unexpected == {'heads.map.classifiers.(a)', 'heads.map.classifiers.(b)'}
    assert len(result) == len(weights)


def test_no_class_in_common_leaves_all_of_them_fresh(kind):
    build, name, class_list = kind
    model, weights = state_of(build(['x', 'y', 'z']), name), state_of(build(ABC), name)
    found = by_name(model, weights, name, class_list, new=['x', 'y', 'z'], old=ABC)
    report = match(model, rearrange(weights, [found], initial=model))
    again = by_name(model, weights, name, class_list, new=CAB, old=ABC)
    assert set(report.fresh) >= set(again.moves)
    assert len(report.reused) + len(report.unexpected) == len(weights)


def test_unnamed_classes_of_another_number_are_left_fresh(kind):
    build, name, class_list = kind
    model, weights = state_of(build(ABC), name), state_of(build(['p', 'q']), name)
    found = by_name(model, weights, name, class_list, new=ABC, old=None, source='x.pth')
    assert f'{name}: x.pth does not name its {class_list}' in str(found)
    assert '2 in place of 3' in str(found) and '--source-classes' in str(found)
    report = match(model, rearrange(weights, [found], initial=model))
    named = by_name(model, weights, name, class_list, new=ABC, old=['p', 'b'])
    assert set(report.fresh) >= set(named.moves)
    assert not any('classifiers.0.0' in record.key for record in report.reused) or build is joint


def test_unnamed_classes_of_the_same_number_are_taken_by_position(kind):
    build, name, class_list = kind
    state = state_of(build(ABC), name)
    found = by_name(state, state, name, class_list, new=ABC, old=None, source='x.pth')
    assert 'taken by position' in str(found) and not found.moves and not found.renames


def test_a_list_that_cannot_be_the_heads_is_not_believed(kind):
    build, name, class_list = kind
    state = state_of(build(ABC), name)
    found = by_name(state, state, name, class_list, new=ABC, old=['a', 'b'], source='x.pth')
    assert f'x.pth names 2 {class_list} for 3 outputs' in str(found) and not found.moves
    with pytest.raises(CheckpointError, match=f'--source-classes gives 2 {class_list} .a, b.*3'):
        by_name(state, state, name, class_list, new=ABC, old=['a', 'b'], certain=True)
    with pytest.raises(CheckpointError, match='--source-classes gives 3'):
        by_name(state, state, name, class_list, new=ABC, old=['a', 'b', 'b'], certain=True)


def test_one_classifier_for_all_is_not_taken_for_the_first_of_many():
    model, weights = state_of(enhanced(CAB), 'heads.map'), state_of(joint(ABC), 'heads.map')
    found = by_name(model, weights, 'heads.map', 'map_classes', new=CAB, old=ABC)
    report = match(model, rearrange(weights, [found], initial=model))
    assert [record.key for record in report.mismatched] == [
        'heads.map.classifiers.0.3.weight', 'heads.map.classifiers.0.3.bias']
    assert set(found.moves) == {'heads.map.aux_classifier.weight', 'heads.map.aux_classifier.bias'}


def test_moments_of_an_optimizer_move_the_same_way(kind):
    build, name, class_list = kind
    model, weights = state_of(build(['d', 'c', 'a']), name), state_of(build(ABC), name)
    found = by_name(model, weights, name, class_list, new=['d', 'c', 'a'], old=ABC)
    zeros = {key: torch.zeros_like(value) for key, value in model.items()}
    moments = {key: value * 2 for key, value in weights.items()}
    moved = rearrange(moments, [found], initial=zeros)
    weights = rearrange(weights, [found], initial=zeros)
    for key, value in moved.items():
        assert torch.equal(value, weights[key] * 2)


def test_heads_of_another_kind_have_no_classes():
    state = {'heads.object.weight': torch.ones(1, 8), 'fuser.0.weight': torch.ones(2),
             'heads.depth.classifier.6.weight': torch.tensor(1.)}
    assert heads_with_classes({key: state[key] for key in list(state)[:2]}) == []
    assert by_name(state, state, 'heads.depth', 'map_classes', new=['a'], old=['b']) is None
