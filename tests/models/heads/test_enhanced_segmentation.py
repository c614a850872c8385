"""The enhanced map head: the design's numbers, its switches, its losses, and learning."""
import math

import pytest
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import PixelData

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.models.heads.enhanced_segmentation import EnhancedBEVSegmentationHead
from bevfusion_enhanced.models.losses import dice_loss, sigmoid_focal_loss

CLASSES = ['drivable_area', 'ped_crossing', 'walkway', 'stop_line', 'carpark_area', 'divider']
FULL = dict(input_scope=[[-54, 54, 0.6]] * 2, output_scope=[[-50, 50, 0.5]] * 2)
TOY = dict(input_scope=[[-8, 8, 1]] * 2, output_scope=[[-6, 6, 1], [-4, 4, 1]])


def toy_head(**changes) -> EnhancedBEVSegmentationHead:
    torch.manual_seed(0)
    config = dict(in_channels=8, classes=CLASSES[:3], grid_transform=TOY,
                  decoder_channels=[16, 16, 8], dropout=0.0)
    return EnhancedBEVSegmentationHead(**{**config, **changes})


def toy_samples(count: int = 2) -> list:
    generator = torch.Generator().manual_seed(1)
    samples = []
    for _ in range(count):
        sample = Det3DDataSample()
        masks = torch.rand(3, 12, 8, generator=generator) < 0.3
        sample.gt_bev_map = PixelData(masks=masks.to(torch.uint8))
        samples.append(sample)
    return samples


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_and_names_of_the_design():
    head = EnhancedBEVSegmentationHead(in_channels=512, classes=CLASSES, grid_transform=FULL)
    assert parameters(head) == 5_618_414
    shapes = {k: tuple(v.shape) for k, v in head.state_dict().items()}
    pinned = {
        'aspp.convs.0.weight': (256, 512, 1, 1), 'aspp.convs.3.weight': (256, 512, 3, 3),
        'aspp.bns.3.weight': (256,), 'aspp.global_conv.weight': (256, 512, 1, 1),
        'aspp.global_norm.bias': (256,), 'aspp.project.weight': (256, 1280, 1, 1),
        'aspp.project_norm.weight': (256,), 'channel_attn.fc.0.weight': (16, 256, 1, 1),
        'channel_attn.fc.2.weight': (256, 16, 1, 1), 'spatial_attn.conv.weight': (1, 2, 7, 7),
        'decoder.0.weight': (256, 256, 3, 3), 'decoder.1.weight': (256,),
        'decoder.4.weight': (128, 256, 3, 3), 'decoder.5.bias': (128,),
        'decoder.8.weight': (128, 128, 3, 3), 'decoder.9.weight': (128,),
        'aux_classifier.weight': (6, 256, 1, 1), 'aux_classifier.bias': (6,)}
    for c in range(6):
        pinned.update({
            f'classifiers.{c}.0.weight': (64, 128, 3, 3), f'classifiers.{c}.1.weight': (64,),
            f'classifiers.{c}.3.weight': (1, 64, 1, 1), f'classifiers.{c}.3.bias': (1,)})
    assert pinned.items() <= shapes.items()
    assert {k.split('.')[0] for k in shapes} == {
        'aspp', 'channel_attn', 'spatial_attn', 'decoder', 'classifiers', 'aux_classifier'}
    assert len(shapes) == 18 + 2 + 1 + 9 + 6 * 5 + 2


@pytest.mark.parametrize(('switch', 'gone'), [
    ('use_aspp', 'aspp'), ('use_channel_attention', 'channel_attn'),
    ('use_spatial_attention', 'spatial_attn'), ('deep_supervision', 'aux_classifier')])
def test_a_switch_removes_its_part_and_nothing_else(switch, gone):
    full, less = toy_head(), toy_head(**{switch: False})
    modules = {k.split('.')[0] for k in full.state_dict()}
    left = {k.split('.')[0] for k in less.state_dict()}
    assert left == modules - {gone} | ({'reduce'} if switch == 'use_aspp' else set())
    bev = torch.randn(2, 8, 16, 16)
    assert less(bev).shape == (2, 3, 12, 8)
    losses = less.loss(bev, toy_samples()).losses
    assert any(name.endswith('/aux') for name in losses) == (switch != 'deep_supervision')


def test_with_cp_changes_neither_losses_nor_gradients_nor_predictions():
    losses, heads = [], [toy_head(dropout=0.3), toy_head(dropout=0.3, with_cp=True)]
    heads[1].load_state_dict(heads[0].state_dict())
    bev = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    for head in heads:
        torch.manual_seed(1)  # the same channels are dropped
        losses.append(head.loss(bev, toy_samples()).losses)
        sum(losses[-1].values()).backward()
    assert losses[0] == losses[1]
    for mine, theirs in zip(*(head.parameters() for head in heads)):
        torch.testing.assert_close(mine.grad, theirs.grad)
    assert torch.equal(*(head.eval()(bev) for head in heads))


def test_one_classifier_for_all_classes():
    head = toy_head(per_class_classifiers=False)
    assert [k for k in head.state_dict() if k.startswith('classifiers.') and '.3.' in k] == [
        'classifiers.0.3.weight', 'classifiers.0.3.bias']
    assert head(torch.randn(2, 8, 16, 16)).shape == (2, 3, 12, 8)


def test_losses_are_the_weighted_formulas():
    weights = dict(ped_crossing=3.0)
    head = toy_head(loss_weight=weights, aux_weight=0.7, dice_weight=0.2, focal_alpha=0.4,
                    focal_gamma=1.5)
    bev, samples = torch.randn(2, 8, 16, 16), toy_samples()
    losses, stats = head.loss(bev, samples)
    logits = head(bev)
    aux = head.aux_classifier(head.aspp(head.transform(bev)))
    target = torch.stack([s.gt_bev_map.masks for s in samples])
    for k, name in enumerate(CLASSES[:3]):
        weight = weights.get(name, 1.0)
        focal = sigmoid_focal_loss(logits[:, k], target[:, k], alpha=0.4, gamma=1.5)
        dice = dice_loss(logits[:, k], target[:, k]).mean()
        deep = sigmoid_focal_loss(aux[:, k], target[:, k], alpha=0.4, gamma=1.5)
        torch.testing.assert_close(losses[f'{name}/focal'], weight * focal)
        torch.testing.assert_close(losses[f'{name}/dice'], weight * 0.2 * dice)
        torch.testing.assert_close(losses[f'{name}/aux'], weight * 0.7 * deep)
        torch.testing.assert_close(stats[f'{name}/dice'], dice.detach())
    assert len(losses) == 9 and len(stats) == 3
    assert not any(value.requires_grad for value in stats.values())


def test_dice_is_watched_even_where_it_is_not_minimised():
    losses, stats = toy_head(use_dice_loss=False, loss='xent').loss(
        torch.randn(2, 8, 16, 16), toy_samples())
    assert set(losses) == {f'{c}/{kind}' for c in CLASSES[:3] for kind in ('xent', 'aux')}
    assert set(stats) == {f'{c}/dice' for c in CLASSES[:3]}


def test_deep_supervision_costs_nothing_in_prediction():
    head = toy_head().eval()
    bev = torch.randn(1, 8, 16, 16)
    expected = head.predict(bev, [Det3DDataSample()])[0]['pred_bev_map'].probs
    head.aux_classifier.register_forward_hook(lambda *_: pytest.fail('was called'))
    assert torch.equal(head.predict(bev, [Det3DDataSample()])[0]['pred_bev_map'].probs, expected)


def test_samples_of_a_batch_do_not_meet_even_in_training():
    head = toy_head().train()
    bev = torch.randn(3, 8, 16, 16)
    torch.testing.assert_close(head(bev), torch.cat([head(b[None]) for b in bev]),
                               atol=1e-5, rtol=1e-4)


def test_untrained_classifiers_start_near_the_prior():
    head = toy_head()
    for classifier in head.classifiers:
        assert classifier[-1].bias.item() == pytest.approx(math.log(0.1 / 0.9))


def test_it_learns_one_sample():
    head = toy_head().train()
    bev, samples = torch.randn(1, 8, 16, 16), toy_samples(1)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        sum(head.loss(bev, samples).losses.values()).backward()
        optimizer.step()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    mask = head.predict(bev, samples)[0]['pred_bev_map'].probs > 0.5
    truth = samples[0].gt_bev_map.masks.bool()
    assert (mask & truth).sum() / (mask | truth).sum() > 0.8


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(loss_weight=dict(lake=2.0)), r"\['lake'\].*not among the classes"),
    (dict(decoder_channels=[16]), 'at least one decoder layer'),
    (dict(loss='l1'), "'focal' or 'xent'")])
def test_wrong_configs_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        toy_head(**changes)
