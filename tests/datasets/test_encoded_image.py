"""Images that are decoded once it is known how much they shrink."""
import cv2
import numpy as np
import pytest

from bevfusion_enhanced.datasets.encoded_image import EncodedImage, black_like, reduction_for
from bevfusion_enhanced.datasets.transforms import ImageAug3D, LoadMultiViewImages
from bevfusion_enhanced.errors import DataError


@pytest.fixture
def views(tmp_path) -> dict:
    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 255, (9, 16, 3)).astype(np.float32)
    image = cv2.resize(coarse, (320, 180), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    path = str(tmp_path / 'view.jpg')
    cv2.imwrite(path, image.astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 95])
    view = dict(img_path=path, cam2img=np.eye(3).tolist(), lidar2cam=np.eye(4).tolist())
    return dict(token='t', images=dict(A=view, B=view))


@pytest.mark.parametrize(('resize', 'reduction'),
                         [(1.2, 1), (0.51, 1), (0.5, 2), (0.3, 2), (0.25, 4), (0.1, 8)])
def test_an_image_is_never_decoded_smaller_than_needed(resize, reduction):
    assert reduction_for(resize) == reduction


@pytest.mark.parametrize('resize', [0.55, 0.5, 0.4, 0.2])
def test_the_result_is_that_of_decoding_everything(views, resize):
    size = [int(160 * resize), int(300 * resize)]
    augment = ImageAug3D(final_dim=size, resize_lim=[resize, resize])
    plain = augment(LoadMultiViewImages()(dict(views)))
    lazy = augment(LoadMultiViewImages(reduction='auto')(dict(views)))
    assert np.array_equal(plain['img_aug_matrix'], lazy['img_aug_matrix'])
    for ours, theirs in zip(lazy['img'], plain['img'], strict=True):
        assert ours.shape == theirs.shape == (*size, 3)
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.mean() < 1.5
        if resize > 0.5:
            assert difference.max() == 0


def test_the_draws_are_the_same(views):
    augment = ImageAug3D(final_dim=[64, 96], resize_lim=[0.38, 0.55], rot_lim=[-5, 5],
                         rand_flip=True, is_train=True)
    matrices = []
    for reduction in (1, 'auto'):
        np.random.seed(3)
        loaded = LoadMultiViewImages(reduction=reduction)(dict(views))
        matrices.append(augment(loaded)['img_aug_matrix'])
    assert np.array_equal(*matrices)


@pytest.mark.parametrize('spoil', [lambda b: b[:len(b) // 2], lambda b: b[:0], lambda b: b'text'])
def test_broken_files_are_named(tmp_path, views, spoil):
    path = tmp_path / 'view.jpg'
    data = np.frombuffer(spoil(path.read_bytes()), np.uint8)
    image = EncodedImage(data, path=str(path), sample='abc')
    with pytest.raises(DataError, match='abc.*view.jpg'):
        image.size, image.decode()


def test_a_lost_camera_is_black(views):
    results = LoadMultiViewImages(reduction='auto')(dict(views))
    results['img'][0] = black_like(results['img'][0])
    lost, kept = ImageAug3D(final_dim=[64, 96], resize_lim=[0.4, 0.4])(results)['img']
    assert lost.max() == 0 < kept.max()
