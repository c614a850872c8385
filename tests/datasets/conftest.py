"""Pipelines are built by name, as a runner does it."""
import pytest
from mmengine.registry import DefaultScope, init_default_scope


@pytest.fixture(autouse=True, scope='session')
def mmdet3d_scope() -> None:
    if DefaultScope.get_current_instance() is None:
        init_default_scope('mmdet3d')
