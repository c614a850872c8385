"""The fingerprint sees structure and class order, and nothing else."""
import torch

from bevfusion_enhanced.checkpoints.fingerprint import (
    architecture_hash,
    class_lists_of,
    explain_change,
    make_fingerprint,
)
from bevfusion_enhanced.checkpoints.matching import match


def test_hash_depends_on_names_and_shapes_alone():
    first = {'a': torch.zeros(2, 3), 'b': torch.zeros(1)}
    reordered = {'b': torch.ones(1), 'a': torch.ones(2, 3)}
    assert architecture_hash(first) == architecture_hash(reordered)
    assert architecture_hash(first) != architecture_hash({'a': torch.zeros(3, 2), 'b': first['b']})
    assert architecture_hash(first) != architecture_hash({'a': first['a'], 'c': first['b']})


def test_fingerprint_is_plain_data_that_class_lists_come_back_from():
    record = make_fingerprint({'a': torch.zeros(2, 3)}, version='1.0',
                              class_lists={'classes': ('car', 'bus'), 'map_classes': ['divider']})
    assert record['tensors'] == {'a': [2, 3]} and record['version'] == '1.0'
    assert class_lists_of({'bevfusion_enhanced': record}) == {
        'classes': ['car', 'bus'], 'map_classes': ['divider']}


def test_class_lists_of_other_programs():
    assert class_lists_of({'dataset_meta': {'classes': ('a', 'b')}}) == {'classes': ['a', 'b']}
    assert class_lists_of({'CLASSES': ('a',)}) == {'classes': ['a']}
    assert class_lists_of(None) == {}


def test_explain_change_names_what_differs():
    same = match({'a.w': torch.ones(2)}, {'a.w': torch.ones(2)})
    assert explain_change(same, {'classes': ['x', 'y']}, {'classes': ['x', 'y']}) == []
    assert explain_change(same, {'classes': ['x', 'y']}, {}) == []
    assert explain_change(same, {'classes': ['x', 'y']}, {'classes': ['y', 'x']}) == [
        "classes ['x', 'y'] -> ['y', 'x']"]
    other = match({'a.w': torch.ones(3), 'heads.map.w': torch.ones(1)},
                  {'a.w': torch.ones(2), 'heads.old.w': torch.ones(1)})
    assert explain_change(other, {}, {}) == [
        'new heads.map.*', 'gone heads.old.*', 'a.w (2,) -> (3,)']
