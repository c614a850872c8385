"""The rig: rigid transforms, viewing directions, scaling."""
import numpy as np
import pytest

from bevfusion_enhanced.synthetic import rig

YAWS = {'CAM_FRONT': 0, 'CAM_FRONT_RIGHT': -55, 'CAM_FRONT_LEFT': 55, 'CAM_BACK': 180,
        'CAM_BACK_LEFT': 110, 'CAM_BACK_RIGHT': -110}


def test_names_and_modalities():
    sensors = rig.nominal()
    assert tuple(s.name for s in sensors) == rig.CAMERAS + (rig.LIDAR,)
    assert [s.modality for s in sensors] == ['camera'] * 6 + ['lidar']


@pytest.mark.parametrize('sensor', rig.nominal(), ids=lambda s: s.name)
def test_sensor2ego_is_rigid(sensor):
    pose = sensor.sensor2ego
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    np.testing.assert_array_equal(pose[:3, 3], sensor.translation)
    assert np.linalg.norm(sensor.rotation) == pytest.approx(1)


@pytest.mark.parametrize('sensor', rig.nominal()[:6], ids=lambda s: s.name)
def test_cameras_look_where_their_names_say(sensor):
    right, down, forward = sensor.sensor2ego[:3, :3].T
    yaw = np.degrees(np.arctan2(forward[1], forward[0]))
    assert abs((yaw - YAWS[sensor.name] + 180) % 360 - 180) < 3
    assert down[2] < -0.99
    np.testing.assert_allclose(np.cross(forward, right), down, atol=1e-9)


def test_lidar_axes_are_right_forward_up():
    axes = rig.nominal()[-1].sensor2ego[:3, :3]
    np.testing.assert_allclose(axes, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=0.03)


def test_cameras_fire_in_the_order_of_their_azimuth():
    by_time = sorted(rig.nominal()[:6], key=lambda s: s.time_offset)
    assert [s.name for s in by_time] == ['CAM_FRONT_LEFT', 'CAM_FRONT', 'CAM_FRONT_RIGHT',
                                         'CAM_BACK_RIGHT', 'CAM_BACK', 'CAM_BACK_LEFT']
    assert all(-0.05 < s.time_offset <= 0 for s in by_time)


@pytest.mark.parametrize('scale', [1.0, 0.25, 0.3, 0.137])
def test_scaling_keeps_viewing_rays(scale):
    full, small = rig.nominal()[0], rig.scaled(scale)[0]
    assert (small.width, small.height) == (round(1600 * scale), round(900 * scale))
    corners = np.array([[0, 1, 1, 0.3], [0, 0, 1, 0.6], [1, 1, 1, 1]])
    rays = [np.linalg.inv(s.intrinsic) @ np.diag([s.width, s.height, 1]) @ corners
            for s in (full, small)]
    np.testing.assert_allclose(*rays, atol=1e-12)


def test_scaling_leaves_the_lidar_alone():
    assert rig.scaled(0.25)[-1].intrinsic is None
    assert rig.scaled(0.25)[-1].width == 0


@pytest.mark.parametrize('scale', [0, -1, float('nan')])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match='image_scale must be positive'):
        rig.scaled(scale)
