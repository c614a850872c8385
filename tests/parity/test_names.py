"""The references' full-size state dicts: every name and shape, there and back."""
import pytest
import torch
from torch.testing import assert_close

from bevfusion_enhanced.checkpoints.geometry import geometry_of
from bevfusion_enhanced.checkpoints.naming import convert, recognise, translate
from bevfusion_enhanced.errors import CheckpointError

pytestmark = pytest.mark.needs_shared

DETECTION, BOTH = ('object',), ('object', 'map')
LISTS = [('mit_det_full', 'mit', DETECTION), ('mit_det_seg_full', 'mit', BOTH),
         ('mmdet3d_lidar_cam_full', 'mmdet3d', DETECTION)]
VTRANSFORM = {'mit': 'encoders.camera.vtransform', 'mmdet3d': 'view_transform'}


@pytest.fixture(scope='module')
def full(full_config, build):
    """{heads: (config, model)} of the full size, built once each."""
    configs = {heads: full_config(*heads) for heads in (DETECTION, BOTH)}
    return {heads: (config, build(config.model)) for heads, config in configs.items()}


@pytest.fixture(params=LISTS, ids=[name for name, _, _ in LISTS])
def reference(request, full, key_list, filled):
    """A reference's weights, geometry included, and the full-size model that they are for."""
    name, origin, heads = request.param
    config, model = full[heads]
    weights = filled(key_list(name))
    transform = model.encoders['camera'].vtransform
    for key in weights:  # geometry as this model computes it, in place of random numbers
        leaf = key.rsplit('.', 1)[-1]
        if leaf in ('dx', 'bx', 'nx', 'frustum'):
            weights[key] = getattr(transform, leaf).clone()
        elif leaf == 'relative_position_index':
            swin = model.encoders['camera'].backbone
            weights[key] = swin.stages[0].blocks[0].attn.w_msa.relative_position_index.clone()
    return origin, config, model, weights


def test_translates_without_a_rest_and_back_bit_for_bit(reference):
    origin, config, model, weights = reference
    state, geometry = model.state_dict(), geometry_of(config)
    translation = translate({'state_dict': weights}, model=state, geometry=geometry)
    assert translation.origin.name == origin and not translation.meaning
    assert {k: v.shape for k, v in translation.weights.items()} == {
        k: v.shape for k, v in state.items()}
    assert any('geometry (16 tensors)' in note for note in translation.notes)
    back = convert(translation.weights, to=origin, geometry=geometry)
    assert list(back) == list(weights)
    for name, value in weights.items():
        assert torch.equal(back[name], value) and back[name].dtype == value.dtype, name
    again = translate(back, model=state, geometry=geometry)
    assert list(again.weights) == list(translation.weights)
    assert all(torch.equal(again.weights[k], v) for k, v in translation.weights.items())


def test_nothing_is_copied_or_changed(reference):
    origin, config, model, weights = reference
    before = dict(weights)
    translation = translate({'state_dict': weights}, model=model.state_dict(),
                            geometry=geometry_of(config))
    memory = {value.untyped_storage().data_ptr() for value in weights.values()}
    assert all(v.untyped_storage().data_ptr() in memory for v in translation.weights.values())
    assert list(weights) == list(before) and all(weights[k] is v for k, v in before.items())


def test_without_a_model_the_layout_is_told_by_the_shapes_themselves(reference):
    origin, config, model, weights = reference
    assert recognise(weights).name == origin
    alone = translate(weights, model={}, geometry={})
    assert {k: v.shape for k, v in alone.weights.items()} == {
        k: v.shape for k, v in model.state_dict().items()}
    assert not any('fits both layouts' in note for note in alone.notes)


def test_another_geometry_is_named(reference):
    origin, config, model, weights = reference
    prefix = VTRANSFORM[origin]
    weights.update({
        f'{prefix}.dx': torch.tensor([0.4, 0.3, 20.0]),
        f'{prefix}.bx': torch.tensor([-51.2 + 0.2, -54.0 + 0.15, 0.0]),
        f'{prefix}.nx': torch.tensor([256, 360, 1]),
        f'{prefix}.frustum': torch.stack(torch.meshgrid(
            torch.arange(1.0, 60.0, 1.0), torch.linspace(0, 447, 56), torch.linspace(0, 799, 100),
            indexing='ij')[::-1], dim=-1)})
    changes = translate(weights, model=model.state_dict(), geometry=geometry_of(config)).meaning
    vtransform = 'model.encoders.camera.vtransform'
    assert {change.key: (change.old, change.new) for change in changes} == {
        f'{vtransform}.xbound': ([-51.2, 51.2, 0.4], [-54.0, 54.0, 0.3]),
        f'{vtransform}.image_size': ([448, 800], [256, 704]),
        f'{vtransform}.feature_size': ([56, 100], [32, 88]),
        f'{vtransform}.dbound': ([1.0, 60.0, 1.0], [1.0, 60.0, 0.5])}
    assert all(change.kind == 'meaning' for change in changes)


@pytest.mark.parametrize('origin', ['mit', 'mmdet3d'])
def test_modules_of_ours_alone_keep_their_names(origin, full_config, build):
    config = full_config(*BOTH)
    config.model.task_gca = dict(mode='task_specific', in_channels=512)
    model = build(config.model)
    state, geometry = model.state_dict(), geometry_of(config)
    converted = convert(state, to=origin, geometry=geometry)
    assert {k for k in converted if k.startswith('task_gca')} == {
        f'task_gca.{task}.fc.{i}.weight' for task in BOTH for i in (0, 2)}
    back = translate(converted, model=state, geometry=geometry)
    assert back.weights.keys() == state.keys() and not back.meaning
    for name, value in state.items():
        assert_close(back.weights[name], value, rtol=0, atol=0)


def test_a_camera_without_its_config_cannot_be_converted(full):
    with pytest.raises(CheckpointError, match=r'give a config with .*vtransform\.xbound'):
        convert(full[DETECTION][1].state_dict(), to='mit', geometry={})
    with pytest.raises(CheckpointError, match="cannot convert to 'onnx'"):
        convert({}, to='onnx', geometry={})
