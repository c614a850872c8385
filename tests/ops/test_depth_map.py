import numpy as np
import torch
from torch.testing import assert_close

from bevfusion_enhanced.ops.depth_map import depth_maps, scatter_last

# Camera axes (x right, y down, z forward) for a camera that looks along LiDAR y.
LIDAR2CAM = torch.tensor([[1., 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
INTRINSIC = torch.tensor([[10., 0, 8, 0], [0, 10, 6, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
SIZE = (12, 16)


def draw(points, *, lidar2img=None, img_aug=None, lidar_aug=None):
    lidar2img = (INTRINSIC @ LIDAR2CAM)[None, None] if lidar2img is None else lidar2img
    B, N = lidar2img.shape[:2]
    return depth_maps(
        points, lidar2img=lidar2img,
        img_aug_matrix=torch.eye(4).expand(B, N, 4, 4) if img_aug is None else img_aug,
        lidar_aug_matrix=torch.eye(4).expand(B, 4, 4) if lidar_aug is None else lidar_aug,
        image_size=SIZE)


def random_cloud(seed, count=400):
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)) * 4


def slow_map(cloud, lidar2img, img_aug):
    """One point at a time, in float64."""
    out = np.zeros(SIZE)
    for point in cloud.double().numpy():
        x, y, depth, _ = lidar2img.double().numpy() @ [*point[:3], 1]
        if depth <= 1e-5:
            continue
        u, v = (img_aug.double().numpy() @ [x / depth, y / depth, 1, 1])[:2]
        if 0 <= u < SIZE[1] and 0 <= v < SIZE[0]:
            out[int(v), int(u)] = depth
    return torch.from_numpy(out).float()


def test_a_point_lands_where_the_pinhole_says():
    depth = draw([torch.tensor([[1., 5., 0.5]])])[0, 0]  # u = 8 + 10 * 1/5, v = 6 - 10 * 0.5/5
    assert depth[5, 10] == 5 and depth.count_nonzero() == 1


def test_points_behind_the_camera_and_beside_the_image_are_not_drawn():
    assert draw([torch.tensor([[0., -5., 0.], [50., 5., 0.], [0., 0., 0.]])]).count_nonzero() == 0


def test_the_last_point_of_the_cloud_wins():
    near, far = [0.02, 5., 0.], [0.01, 9., 0.]
    assert draw([torch.tensor([near, far])]).max() == 9
    assert draw([torch.tensor([far, near])]).max() == 5


def test_batches_and_cameras_equal_a_loop_over_points():
    backwards = INTRINSIC @ LIDAR2CAM @ torch.diag(torch.tensor([-1., -1, 1, 1]))
    lidar2img = torch.stack([INTRINSIC @ LIDAR2CAM, backwards])[None].repeat(3, 1, 1, 1)
    img_aug = torch.eye(4).repeat(3, 2, 1, 1)
    img_aug[..., :2, :2] = torch.tensor([[0.9, 0.1], [-0.1, 0.8]])
    img_aug[..., :2, 3] = torch.tensor([1.5, -0.5])
    clouds = [random_cloud(0), random_cloud(1, count=250), torch.zeros(0, 5)]
    maps = draw(clouds, lidar2img=lidar2img, img_aug=img_aug)
    expected = torch.stack([
        torch.stack([slow_map(cloud, lidar2img[b, n], img_aug[b, n]) for n in range(2)])
        for b, cloud in enumerate(clouds)])
    assert expected[:2].count_nonzero() > 60
    assert_close(maps, expected, atol=1e-4, rtol=1e-4)


def test_lidar_augmentation_is_undone():
    cloud = random_cloud(2)
    angle = torch.tensor(0.3)
    aug = torch.eye(4)
    aug[:2, :2] = 1.1 * torch.stack([torch.stack([angle.cos(), -angle.sin()]),
                                     torch.stack([angle.sin(), angle.cos()])])
    aug[2, 2] = 1.1
    aug[:3, 3] = torch.tensor([0.5, -0.2, 0.1])
    moved = cloud.clone()
    moved[:, :3] = cloud[:, :3] @ aug[:3, :3].T + aug[:3, 3]
    before, after = draw([cloud]), draw([moved], lidar_aug=aug[None])
    same = (before - after).abs() < 1e-3
    assert same.float().mean() > 0.99  # a point on a pixel's edge may round to its neighbour


def test_points_are_not_modified():
    cloud = random_cloud(3)
    kept = cloud.clone()
    aug = torch.eye(4)[None].clone()
    aug[0, :3, 3] = 1.0
    draw([cloud], lidar_aug=aug)
    assert torch.equal(cloud, kept)


def test_points_that_are_not_numbers_are_not_drawn():
    assert draw([torch.full((4, 3), float('nan'))]).count_nonzero() == 0


def test_scatter_last():
    out = scatter_last(torch.tensor([1., 2., 3., 4.]), torch.tensor([2, 0, 2, 3]), size=5)
    assert out.tolist() == [2, 0, 3, 4, 0]


def test_of_many_points_on_a_pixel_the_last_wins_whatever_the_threads(on_threads):
    generator = torch.Generator().manual_seed(4)
    index = torch.randint(50, (100_000,), generator=generator)
    values = torch.rand(100_000, generator=generator)
    expected = np.zeros(50, dtype=np.float32)
    for i, value in zip(index.tolist(), values.tolist(), strict=True):
        expected[i] = value
    for threads in (1, 2, 3):
        out = on_threads(threads, lambda: scatter_last(values, index, size=50))
        assert out.tolist() == expected.tolist()


def test_runs_are_equal_bit_for_bit_whatever_the_threads_and_the_batch(on_threads):
    clouds = [random_cloud(5, count=40_000), random_cloud(6, count=25_001)]  # 340 a pixel

    def run(clouds=clouds):
        lidar2img = (INTRINSIC @ LIDAR2CAM).expand(len(clouds), 1, 4, 4)
        img_aug = torch.eye(4).repeat(len(clouds), 1, 1, 1)
        img_aug[..., :2, :2] = torch.tensor([[0.93, 0.11], [-0.12, 0.87]])
        lidar_aug = torch.eye(4).repeat(len(clouds), 1, 1)
        lidar_aug[:, :3, :3] += torch.linspace(-0.1, 0.1, 9).view(3, 3)
        return draw(clouds, lidar2img=lidar2img, img_aug=img_aug, lidar_aug=lidar_aug)

    first = run()
    assert first.count_nonzero() > 0.9 * first.numel()
    assert torch.equal(first, run())
    assert all(torch.equal(first, on_threads(n, run)) for n in (1, 2, 3))
    assert torch.equal(first[1:], run(clouds[1:]))


def test_empty_clouds_give_empty_maps():
    lidar2img = (INTRINSIC @ LIDAR2CAM).expand(2, 3, 4, 4)
    assert torch.equal(draw([torch.zeros(0, 5)] * 2, lidar2img=lidar2img),
                       torch.zeros(2, 3, *SIZE))
    nothing = scatter_last(torch.zeros(0), torch.zeros(0, dtype=torch.long), size=3)
    assert nothing.tolist() == [0, 0, 0]
