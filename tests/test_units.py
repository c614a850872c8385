"""Sizes are short and of the right unit."""
import pytest

from bevfusion_enhanced.units import readable_size


@pytest.mark.parametrize('size, text', [
    (0, '0 B'), (999, '999 B'), (1000, '1 kB'), (999_600, '1 MB'), (1.5e9, '1.5 GB'),
    (5e15, '5e+03 TB'),
])
def test_sizes_are_readable(size, text):
    assert readable_size(size) == text
