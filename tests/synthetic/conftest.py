"""A small town with traffic and a small dataset, made once for all tests of this folder."""
from pathlib import Path
from typing import Dict

import pytest

from bevfusion_enhanced.synthetic.dataset import create_dataset
from bevfusion_enhanced.synthetic.scene import Town
from bevfusion_enhanced.synthetic.town import build_town
from bevfusion_enhanced.synthetic.traffic import Traffic, simulate


@pytest.fixture(scope='session')
def tiny_settings() -> Dict[str, float]:
    """Settings of `tiny_dataset`."""
    return {'scenes': 2, 'keyframes': 4, 'sweeps': 2, 'image_scale': 0.1, 'seed': 3,
            'lidar_columns': 542}


@pytest.fixture(scope='session')
def tiny_dataset(tiny_settings: Dict[str, float], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a dataset of two scenes, one of each split, with 4 key frames and 160x90 images."""
    root = tmp_path_factory.mktemp('synthetic') / 'nuscenes'
    create_dataset(out=root, workers=2, **tiny_settings)
    return root


@pytest.fixture(scope='session')
def town() -> Town:
    return build_town(location='singapore-queenstown', seed=3)


@pytest.fixture(scope='session')
def traffic(town: Town) -> Traffic:
    """Ten seconds of traffic in `town`."""
    return simulate(town=town, seed=5, duration=9.5)
