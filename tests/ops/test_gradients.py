"""Every backward pass of ours against finite differences, in float64.

The operators with a backward of their own, and what differentiates through several of PyTorch's by
rules that are easily lost: clamps, branches, gathers.
"""
import ast
from pathlib import Path
from typing import Callable, Dict, Tuple

import pytest
import torch
from mmcv.ops import sigmoid_focal_loss as mmcv_focal_loss
from spconv.pytorch import SparseConvTensor
from torch import Tensor
from torch.autograd import gradcheck
from torch.func import functional_call

import bevfusion_enhanced
from bevfusion_enhanced.models.attention import (
    ChannelAttention,
    GlobalContextAttention,
    SpatialAttention,
)
from bevfusion_enhanced.models.camera.swin import windows_of
from bevfusion_enhanced.models.camera.view_transform import LSSTransform
from bevfusion_enhanced.models.heads.bev_map import BEVGridTransform
from bevfusion_enhanced.models.heads.transfusion_coder import BoxCode, TransFusionBBoxCoder
from bevfusion_enhanced.models.heads.transfusion_proposals import local_maxima
from bevfusion_enhanced.models.lidar.sparse_encoder import StridedConv, SubmanifoldConv
from bevfusion_enhanced.models.losses import dice_loss, sigmoid_cross_entropy, sigmoid_focal_loss
from bevfusion_enhanced.ops import rotated_boxes
from bevfusion_enhanced.ops.bev_pool import bev_pool, plan_pooling
from bevfusion_enhanced.ops.dropped_attention import _MaskedAttention
from bevfusion_enhanced.ops.feed_forward import feed_forward
from bevfusion_enhanced.ops.gathered_conv import gathered_conv
from bevfusion_enhanced.ops.group_norm import _GroupNorm
from bevfusion_enhanced.ops.window_attention import attend_in_windows
from bevfusion_enhanced.ops.winograd import winograd_conv2d

Case = Tuple[Callable[..., Tensor], Tuple[Tensor, ...]]
CASES: Dict[str, Callable[[], Case]] = {}
# What has a backward of its own, by where it is defined, and the case that checks it.
OWN_BACKWARD = {
    'ops/bev_pool.py:_BEVPool': 'bev_pool',
    'ops/dropped_attention.py:_MaskedAttention': 'attention_with_a_mask',
    'ops/feed_forward.py:_FeedForward': 'feed_forward_network',
    'ops/gathered_conv.py:_GatheredConv': 'gathered_convolution',
    'ops/group_norm.py:_GroupNorm': 'group_norm',
    'ops/mmcv_ext.py:sigmoid_focal_loss_backward': 'mmcv_focal_loss',
    'ops/row_sums.py:_RowSums': 'bev_grid_transform',
    'ops/sparse_conv.py:_SparseConv': 'submanifold_convolution',
    'ops/window_attention.py:_WindowAttention': 'attention_in_windows',
    'ops/winograd.py:_Winograd': 'winograd',
}
# Those whose gradient is not the derivative of what they return, on purpose.
NO_DERIVATIVE = {
    'models/task_balance.py:_ProjectedBranches',  # conflicts between tasks are taken out
    'models/task_balance.py:_Deposit',            # hands on a gradient that it was given
}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def some_boxes(count: int) -> Tensor:
    """(count, 7), sizes from 0.5 to 3.5 m, close enough together to overlap."""
    center, size, yaw = normal(count, 3), 0.5 + 3 * torch.rand(count, 3), 3 * normal(count, 1)
    return torch.cat([center, size.double(), yaw], dim=1)


@case
def bev_pool_of_scattered_pixels() -> Case:
    cells = torch.randint(-1, 6, (7, 4), dtype=torch.int32)
    plan = plan_pooling(cells, num_cells=6)
    return lambda d, c: bev_pool(d, c, plan), (normal(7, 4), normal(7, 3))


@case
def bev_pool_of_pixels_that_meet_a_cell_in_every_bin() -> Case:
    plan = plan_pooling(torch.zeros(5, 4, dtype=torch.int32), num_cells=2)
    return lambda d, c: bev_pool(d, c, plan), (normal(5, 4), normal(5, 3))


@case
def attention_with_a_mask() -> Case:
    kept = torch.rand(3, 2, 4, 6) < 0.6
    return (lambda q, k, v: _MaskedAttention.apply(q, k, v, kept),
            (normal(2, 3, 4, 5), normal(2, 3, 6, 5), normal(2, 3, 6, 5)))


@case
def attention_in_windows() -> Case:
    windows = windows_of(3, 4, window=2, shift=1, device=torch.device('cpu'))
    return (lambda qkv, padding, bias: attend_in_windows(qkv, padding, bias, windows, scale=0.7),
            (normal(2, 12, 12), normal(12), normal(2, 4, 4)))


@case
def feed_forward_network() -> Case:
    return feed_forward, (normal(5, 3), normal(4, 3), normal(4), normal(3, 4), normal(3))


@case
def group_norm() -> Case:
    return (lambda x, w, b: _GroupNorm.apply(x, w, b, 2, 1e-5),
            (normal(2, 6, 3, 2), normal(6), normal(6)))


@case
def winograd() -> Case:
    return (lambda x, w, b: winograd_conv2d(x, w, b, padding=2, dilation=2),
            (normal(2, 2, 5, 9), normal(3, 2, 3, 3), normal(3)))


@case
def lift_splat() -> Case:
    bound = [-4., 4., 1.]
    transform = LSSTransform(in_channels=4, out_channels=2, image_size=[16, 24],
                             feature_size=[2, 3], xbound=bound, ybound=bound,
                             zbound=[-10., 10., 20.], dbound=[1., 5., 1.])
    plan = plan_pooling(torch.randint(-1, 64, (6, 4), dtype=torch.int32), num_cells=64)
    transform.pooling_plan = lambda calibration: plan
    return lambda x: transform.lift_splat(x, None), (normal(1, 6, 2, 3),)


def of_mmcv_focal_loss(*, weighted: bool, reduction: str) -> Case:
    target = torch.tensor([0, 3, 1, 2, 3, 0])  # 3 is no class
    weight = torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64) if weighted else None
    return (lambda x: mmcv_focal_loss(x, target, 2.0, 0.25, weight, reduction),
            (3 * normal(6, 3),))


@case
def mmcv_focal_loss_of_every_element() -> Case:
    return of_mmcv_focal_loss(weighted=False, reduction='none')


@case
def mmcv_focal_loss_mean_of_weighted_classes() -> Case:
    return of_mmcv_focal_loss(weighted=True, reduction='mean')


@case
def focal_loss() -> Case:
    target = torch.rand(4, 5) < 0.4
    return (lambda x: sigmoid_focal_loss(x, target, alpha=0.25, gamma=2.0), (3 * normal(4, 5),))


@case
def focal_loss_without_weights_or_focus() -> Case:
    target = torch.rand(4, 5) < 0.4
    return lambda x: sigmoid_focal_loss(x, target, alpha=-1, gamma=0.0), (3 * normal(4, 5),)


@case
def cross_entropy() -> Case:
    target = torch.rand(4, 5) < 0.4
    return lambda x: sigmoid_cross_entropy(x, target), (3 * normal(4, 5),)


@case
def dice() -> Case:
    target = torch.rand(2, 3, 4, 5) < 0.4
    target[0, 0] = False  # a map without positives
    return lambda x: dice_loss(x, target), (normal(2, 3, 4, 5),)


@case
def ground_overlap_of_all_pairs() -> Case:
    ground = [0, 1, 3, 4, 6]
    return rotated_boxes.bev_overlap, (some_boxes(6)[:, ground], some_boxes(5)[:, ground])


@case
def iou_3d_of_pairs() -> Case:
    return (lambda a, b: rotated_boxes.box_iou_3d(a, b, aligned=True),
            (some_boxes(12), some_boxes(12)))


@case
def iou_of_a_box_inside_another_and_of_one_far_away() -> Case:
    a = torch.tensor([[0.1, 0.2, 1, 0.5, 0.3], [50, 0, 1, 2, 0.1]], dtype=torch.float64)
    b = torch.tensor([[0, 0, 4, 3, -0.4], [0, 0, 4, 3, 0]], dtype=torch.float64)
    return lambda a, b: rotated_boxes.box_iou_rotated(a, b, aligned=True), (a, b)


@case
def bev_grid_transform() -> Case:
    transform = BEVGridTransform(input_scope=[(-4., 4., 2.), (-4., 4., 2.)],
                                 output_scope=[(-5., 5., 1.), (-3., 3., 1.)])
    return transform, (normal(2, 2, 4, 4),)


@case
def bev_grid_transform_with_prescaling() -> Case:
    transform = BEVGridTransform(input_scope=[(-4., 4., 2.), (-4., 4., 2.)], prescale_factor=2,
                                 output_scope=[(-4., 4., 1.), (-4., 4., 1.)])
    return transform, (normal(1, 1, 4, 4),)


@case
def box_decoding() -> Case:
    coder = TransFusionBBoxCoder(pc_range=[-54., -54.], voxel_size=[0.075, 0.075],
                                 out_size_factor=8)
    parts = tuple(normal(2, width, 3) for width in (2, 1, 3, 2, 2))
    return lambda *code: coder.decode(BoxCode(*code)), parts


@case
def peaks_of_a_heatmap() -> Case:
    return (lambda x: local_maxima(x.sigmoid(), size=3, spared=[1]), (normal(1, 2, 5, 6),))


@case
def global_context_attention() -> Case:
    return GlobalContextAttention(in_channels=8).double(), (normal(2, 8, 3, 4),)


@case
def channel_attention() -> Case:
    return ChannelAttention(in_channels=8, reduction=2).double(), (normal(2, 8, 3, 4),)


@case
def spatial_attention() -> Case:
    return SpatialAttention(kernel_size=3).double(), (normal(2, 3, 4, 5),)


def of_sparse_conv(conv: torch.nn.Module) -> Case:
    coords = torch.nonzero(torch.rand(2, 4, 4, 4) < 0.2).int()

    def run(features: Tensor, weight: Tensor) -> Tensor:
        x = SparseConvTensor(features, coords, [4, 4, 4], 2)
        return functional_call(conv, dict(weight=weight), (x,)).dense()

    return run, (normal(len(coords), 2), normal(*conv.weight.shape))


@case
def submanifold_convolution() -> Case:
    return of_sparse_conv(SubmanifoldConv(in_channels=2, out_channels=3))


@case
def strided_sparse_convolution() -> Case:
    return of_sparse_conv(StridedConv(in_channels=2, out_channels=3, kernel_size=3, stride=2,
                                      padding=1))


@case
def gathered_convolution() -> Case:
    neighbours = torch.tensor([[3, 0, 1], [0, 1, 3], [3, 2, 3]], dtype=torch.int32)
    return (lambda x, weight: gathered_conv(x, weight, neighbours),
            (normal(3, 2), normal(4, 3, 2)))


@pytest.mark.parametrize('name', CASES)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    function, inputs = CASES[name]()
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    assert any(g.abs().max() > 0 for g in torch.autograd.grad(function(*inputs).sum(), inputs))
    assert gradcheck(function, inputs, atol=1e-6, rtol=1e-5)


def own_backwards(path: Path) -> set:
    """Names of the autograd functions and of the `*_backward` functions that a file defines."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return {node.name for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            and any(ast.unparse(base).split('.')[-1] == 'Function' for base in node.bases)
            or node in tree.body  # a function, no method
            and isinstance(node, ast.FunctionDef) and node.name.endswith('_backward')}


def test_no_operator_with_a_backward_is_left_out() -> None:
    package = Path(bevfusion_enhanced.__file__).parent
    found = {f'{path.relative_to(package).as_posix()}:{name}'
             for path in package.rglob('*.py') for name in own_backwards(path)}
    assert found - NO_DERIVATIVE == set(OWN_BACKWARD)
    for prefix in OWN_BACKWARD.values():
        assert any(name.startswith(prefix) for name in CASES), prefix
