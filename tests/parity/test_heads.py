"""The original's two heads alone, under its names."""
import numpy as np
import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import PixelData
from torch import nn

pytestmark = pytest.mark.needs_shared

CLASSES = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider']


class Model(nn.Module):
    """A model of nothing but a head, so that its names are a whole model's."""

    def __init__(self, task, head):
        super().__init__()
        self.heads = nn.ModuleDict({task: head})


@pytest.fixture
def load_head(build, filled, load):
    """A head with the weights that the original would have under these names."""

    def from_shapes(task, config, shapes=None):
        model = Model(task, build(config))
        shapes = shapes or {k: v.shape for k, v in model.heads[task].state_dict().items()}
        load(model, filled({f'heads.{task}.{k}': v for k, v in shapes.items()}), {},
             origin='native')  # a head alone holds nothing that would tell the two apart
        return model.heads[task].eval()

    return from_shapes


def test_detection_head(load_head, small_config, key_list, golden, relative):
    """What each of the original's names means, independent of MMDetection3D's names."""
    head = load_head('object', small_config.model.heads.object,
                     key_list('mit_transfusion_head_small'))
    expected = golden('mit_transfusion_head_golden')
    bev = np.random.default_rng(5).standard_normal((2, 512, 48, 48)).astype(np.float32)
    with torch.no_grad():
        outputs = head(torch.from_numpy(bev))
    code, logits = outputs.layers[-1]
    assert relative(outputs.dense_heatmap, expected['dense_heatmap']) < 1e-4
    raw = dict(code._asdict(), heatmap=logits, query_heatmap_score=outputs.query_heatmap_score)
    # proposals that score the same to the last bit came in no particular order: compare as sets
    theirs = np.stack([np.lexsort(scores) for scores in expected['query_heatmap_score']])
    ours = np.stack([np.lexsort(scores.numpy()) for scores in raw['query_heatmap_score']])
    for name, value in raw.items():
        assert relative(np.take_along_axis(value.numpy(), ours[:, None], axis=2),
                        np.take_along_axis(expected[name], theirs[:, None], axis=2)) < 1e-4, name


@pytest.mark.parametrize('loss', ['focal', 'xent'])
def test_map_head(loss, load_head, golden, relative):
    head = load_head('map', dict(
        type='BEVSegmentationHead', in_channels=64, classes=CLASSES, loss=loss,
        grid_transform=dict(input_scope=[[-57.6, 57.6, 2.4]] * 2, output_scope=[[-50, 50, 2]] * 2)))
    expected = golden('mit_segmentation_head_golden')
    x = torch.from_numpy(expected['x']).requires_grad_()
    samples = [Det3DDataSample() for _ in expected['target']]
    for sample, masks in zip(samples, expected['target'], strict=True):
        sample.gt_bev_map = PixelData(masks=torch.as_tensor(masks.astype(np.uint8)))

    probs = torch.stack([p['pred_bev_map'].probs for p in head.predict(x, samples)])
    assert relative(probs, expected[f'{loss}_prob']) < 1e-4
    losses, stats = head.train().loss(x, samples)  # the golden losses are those of training
    assert not stats and list(losses) == [f'{name}/{loss}' for name in CLASSES]
    for name, value in losses.items():
        assert value.item() == pytest.approx(float(expected[f'{loss}_loss_{name}']), rel=1e-4)
    sum(losses.values()).backward()
    assert relative(x.grad[:, ::8], expected[f'{loss}_grad_x']) < 1e-4
