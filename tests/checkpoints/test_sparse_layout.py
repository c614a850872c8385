"""Sparse weights of either layout, however a file was written: the encoder's outputs are right."""
import copy
from collections import OrderedDict

import pytest
import torch
from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE
from mmengine.runner.checkpoint import load_state_dict, save_checkpoint
from spconv.pytorch import ConvAlgo, SparseConv3d, SubMConv3d
from torch import nn

from bevfusion_enhanced.checkpoints.matching import fill, match
from bevfusion_enhanced.checkpoints.naming import convert, translate
from bevfusion_enhanced.checkpoints.sparse_layout import (
    SPARSE_PREFIX,
    V1,
    V2,
    find_layout,
    notes_on,
    to_spconv1,
    to_spconv2,
)
from bevfusion_enhanced.checkpoints.storage import read_checkpoint, write_checkpoint
from bevfusion_enhanced.models.lidar.sparse_encoder import (
    BEVFusionSparseEncoder,
    StridedConv,
    SubmanifoldConv,
)

SHAPE = (16, 24, 41)
assert IS_SPCONV2_AVAILABLE  # so MMDetection3D's patch of spconv's loading is in force here


class Model(nn.Module):
    """Nothing but a narrow sparse encoder, at its place in the whole model.

    The first five convolutions have as many channels in as out as cells along the kernel.
    """

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        encoder = BEVFusionSparseEncoder(
            in_channels=3, sparse_shape=SHAPE, base_channels=3, output_channels=6,
            encoder_channels=((3, 3, 6), (6, 6, 6), (6, 6, 8), (8, 8)))
        self.encoders = nn.ModuleDict({'lidar': nn.ModuleDict({'backbone': encoder})})
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 1.5)
        self.eval()

    @torch.no_grad()
    def forward(self):
        generator = torch.Generator().manual_seed(1)
        cells = torch.randperm(16 * 24 * 41, generator=generator)[:300].sort().values
        coords = torch.stack(torch.unravel_index(cells, (1, *SHAPE)), dim=1).int().contiguous()
        features = torch.randn(300, 3, generator=generator)
        return self.encoders['lidar']['backbone'](features, coords, 1)


@pytest.fixture(scope='module')
def trained():
    return Model(seed=0)


@pytest.fixture(scope='module')
def expected(trained):
    out = trained()
    assert out.any()
    return out


def by_torch(checkpoint, path):
    torch.save(checkpoint, path)


def by_mmengine(checkpoint, path):
    save_checkpoint(checkpoint, str(path))


WRITERS = [by_torch, by_mmengine, write_checkpoint]


@pytest.mark.parametrize('layout', [V1, V2])
@pytest.mark.parametrize('metadata', ['kept', 'lost'])
@pytest.mark.parametrize('write', WRITERS, ids=['torch', 'mmengine', 'ours'])
@pytest.mark.parametrize('rewrite', [None, *WRITERS], ids=['once', 'torch', 'mmengine', 'ours'])
def test_outputs_whoever_wrote_the_file(layout, metadata, write, rewrite, trained, expected,
                                        tmp_path):
    state = trained.state_dict()
    weights = to_spconv1(state) if layout == V1 else OrderedDict(state)
    if metadata == 'kept':
        weights._metadata = state._metadata
    path = tmp_path / 'a.pth'
    write({'state_dict': weights, 'meta': {}}, path)
    if rewrite is not None:
        again = read_checkpoint(path)
        assert (getattr(again['state_dict'], '_metadata', None) is None) == (metadata == 'lost')
        path = tmp_path / 'b.pth'
        rewrite(again, path)

    model = Model(seed=1)
    translation = translate(read_checkpoint(path, mmap=True), model=model.state_dict(),
                            geometry={})
    layers = sum(value.dim() == 5 for value in state.values())
    note = f'sparse weights in the layout of spconv 1.x, permuted ({layers} layers)'
    assert (note in translation.notes) == (layout == V1)
    report = match(model.state_dict(), translation.weights)
    assert report.complete and not report.unexpected
    filled = fill(model.state_dict(), translation.weights, report)
    for load in (lambda m, s: m.load_state_dict(s), load_state_dict):
        for loaded in (filled, translation.weights):  # with the model's metadata, and with none
            model = Model(seed=2)
            assert not torch.equal(model(), expected)
            load(model, loaded)
            assert torch.equal(model(), expected)




def as_stock(model):
    """The same model with spconv's own layers, which load as MMDetection3D has them load."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, (SubmanifoldConv, StridedConv)):
            layer.__class__ = SubMConv3d if isinstance(layer, SubmanifoldConv) else SparseConv3d
            layer.algo = ConvAlgo.Native
    model.pts_middle_encoder = model.encoders['lidar']['backbone']  # under its name there
    return model


def test_converted_for_mmdetection3d_it_gives_the_same_outputs_there(trained, expected, tmp_path):
    converted = convert(trained.state_dict(), to='mmdet3d', geometry={})
    write_checkpoint({'state_dict': converted, 'meta': {}}, tmp_path / 'a.pth')
    there = as_stock(Model(seed=1))
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)['state_dict']
    load_state_dict(there, loaded)
    torch.testing.assert_close(there(), expected)  # spconv adds in another order
    lost = as_stock(Model(seed=1))  # the trap: without metadata its loading permutes
    load_state_dict(lost, OrderedDict(loaded))
    assert (lost() - expected).abs().max() > 0.01


def layers(**shapes):
    return {f'{SPARSE_PREFIX}{name}': torch.zeros(shape) for name, shape in shapes.items()}


MODEL = layers(a=(3, 3, 3, 3, 3), b=(16, 3, 3, 3, 3), c=(16, 3, 3, 3, 16), d=(3, 3, 3, 3, 3),
               out=(8, 1, 1, 3, 16))


@pytest.mark.parametrize('kind', [V1, V2])
def test_ambiguous_layers_go_with_the_others(kind):
    weights = OrderedDict(MODEL)
    weights = to_spconv1(weights) if kind == V1 else weights
    layout = find_layout(weights, MODEL)
    assert set(layout.of_layer.values()) == {kind} and layout.main == kind
    assert layout.undecided == (SPARSE_PREFIX + 'a', SPARSE_PREFIX + 'd')
    assert any('fits both layouts of spconv' in note and f'that of {kind}' in note
               for note in notes_on(layout))


@pytest.mark.parametrize('default', [V1, V2])
def test_a_file_in_which_no_shape_decides(default):
    weights = layers(a=(3, 3, 3, 3, 3))
    layout = find_layout(weights, MODEL, default=default)
    assert layout.lone and layout.of_layer == {SPARSE_PREFIX + 'a': default}
    assert 'because nothing tells otherwise' in notes_on(layout)[-1]


def test_a_layer_is_judged_by_itself_before_the_others():
    weights = to_spconv1(MODEL)
    weights[SPARSE_PREFIX + 'c'] = MODEL[SPARSE_PREFIX + 'c']
    layout = find_layout(weights, MODEL)
    assert layout.of_layer[SPARSE_PREFIX + 'c'] == V2 and layout.main == V1
    assert {k: v.shape for k, v in to_spconv2(weights, layout).items()} == {
        k: v.shape for k, v in MODEL.items()}
    assert '1 sparse layers are in that of spconv 2.x already' in notes_on(layout)


def test_a_layer_of_other_channels_is_permuted_with_the_rest():
    """So that a report compares its shape in our layout."""
    weights = {**to_spconv1(MODEL), **layers(b=(3, 3, 3, 3, 32), new=(3, 3, 3, 16, 16))}
    permuted = to_spconv2(weights, find_layout(weights, MODEL))
    assert permuted[SPARSE_PREFIX + 'b'].shape == (32, 3, 3, 3, 3)
    assert permuted[SPARSE_PREFIX + 'new'].shape == (16, 3, 3, 3, 16)


def test_permuting_is_a_view_and_nothing_else_is_touched():
    value = torch.arange(3 * 3 * 3 * 2 * 4.).view(3, 3, 3, 2, 4)
    image = torch.zeros(2, 3, 4, 5, 6)  # five axes, but not of the sparse encoder
    weights = {SPARSE_PREFIX + 'b': value, 'heads.map.b': image}
    permuted = to_spconv2(weights, find_layout(weights, layers(b=(4, 3, 3, 3, 2))))
    assert permuted[SPARSE_PREFIX + 'b'].data_ptr() == value.data_ptr()
    assert permuted[SPARSE_PREFIX + 'b'][3, 0, 1, 2, 1] == value[0, 1, 2, 1, 3]
    assert permuted['heads.map.b'] is image
