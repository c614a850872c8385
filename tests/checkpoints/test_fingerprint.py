"""The record that a checkpoint carries of what it was trained as."""
import hashlib
import json
import os

import pytest
import torch

from bevfusion_enhanced import __version__
from bevfusion_enhanced.checkpoints import fingerprint
from bevfusion_enhanced.checkpoints.explain import explain_change
from bevfusion_enhanced.checkpoints.fingerprint import (
    FORMAT,
    META_KEY,
    architecture_hash,
    class_lists_of,
    explain_tensors,
    fingerprint_of,
    info_digests,
    make_fingerprint,
    require_readable,
)
from bevfusion_enhanced.checkpoints.matching import match
from bevfusion_enhanced.errors import CheckpointError


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


def test_the_record_holds_everything_in_full_and_hashed():
    state = {'a': torch.zeros(2, 3), 'b': torch.zeros(1, dtype=torch.int64), 'note': 'no tensor'}
    record = make_fingerprint(
        state, version='1.0', class_lists={'classes': ['car']}, config_text='x = 1',
        geometry={'voxel_size': [1, 1, 1]}, info_digests={'d/i.pkl': 'ab'})
    assert record['tensors'] == {'a': [2, 3], 'b': [1]}
    assert record['dtypes'] == {'a': 'float32', 'b': 'int64'}
    assert record['geometry'] == {'voxel_size': [1, 1, 1]} and record['config'] == 'x = 1'
    assert record['info_files'] == {'d/i.pkl': 'ab'} and record['format'] == FORMAT
    assert json.loads(json.dumps(record)) == record  # plain types alone
    half = make_fingerprint({**state, 'a': state['a'].half()}, version='1.0', class_lists={})
    assert half['architecture'] == record['architecture']
    assert half['tensor_hash'] != record['tensor_hash']


def test_our_own_record_is_returned_and_others_are_made():
    state = {'a': torch.zeros(2)}
    record = make_fingerprint(state, version=__version__, class_lists={'classes': ['car']})
    assert fingerprint_of({'meta': {META_KEY: record}, 'state_dict': state}) == record
    text = "model = dict(encoders=dict(lidar=dict(voxelize=dict(voxel_size=[1, 1, 2]))))"
    made = fingerprint_of({'state_dict': state, 'meta': {
        'cfg': text, 'dataset_meta': {'classes': ('car', 'bus')}}})
    assert made['tensors'] == {'a': [2]} and made['classes'] == ['car', 'bus']
    assert made['geometry'] == {'voxel_size': [1, 1, 2]} and made['config'] == text
    bare = fingerprint_of(state)
    assert bare['tensors'] == {'a': [2]} and bare['config'] == '' and bare['geometry'] == {}


def test_a_record_of_the_first_format_gains_its_config_from_the_metadata():
    old = {'version': '0.1.0', 'architecture': 'x', 'tensors': {'a': [2]}, 'classes': ['car']}
    made = fingerprint_of({'state_dict': {'a': torch.zeros(2)}, 'meta': {
        META_KEY: old, 'cfg': 'model = dict(type=1)'}})
    assert made['config'] == 'model = dict(type=1)' and made['classes'] == ['car']
    assert made['version'] == '0.1.0'


@pytest.mark.parametrize('record', [
    {'version': '99.0.0'}, {'version': '0.99.1', 'format': 1}, {'format': FORMAT + 1},
    {'version': __version__, 'format': FORMAT + 1}, {'version': '0.1.0', 'format': 'new'}])
def test_a_newer_versions_file_is_refused_by_name(record):
    with pytest.raises(CheckpointError, match=f'run.pth was written by bevfusion_enhanced .*'
                       f'this is {__version__}; update'):
        require_readable({META_KEY: record}, source='run.pth')
    with pytest.raises(CheckpointError, match='was written by'):
        fingerprint_of({'meta': {META_KEY: record}, 'state_dict': {'a': torch.zeros(1)}})


@pytest.mark.parametrize('meta', [
    None, {}, {'cfg': 'x'}, {META_KEY: None}, {META_KEY: {'version': 'unknown'}},
    {META_KEY: {'version': '0.0.9'}}, {META_KEY: {'version': __version__, 'format': FORMAT}}])
def test_older_and_other_files_are_readable(meta):
    require_readable(meta)


def test_info_files_are_digested_once_until_they_change(tmp_path, monkeypatch):
    file = tmp_path / 'infos.pkl'
    file.write_bytes(b'first')
    data = {'data_root': str(tmp_path), 'ann_file': 'infos.pkl'}
    config = {
        'train_dataloader': {'dataset': {'type': 'RepeatDataset', 'dataset': data}},
        'val_dataloader': {'dataset': {'type': 'ConcatDataset', 'datasets': [
            data, {'data_root': str(tmp_path), 'ann_file': 'none.pkl'}, {'ann_file': ''}]}},
        'test_dataloader': None}
    path = (tmp_path / 'infos.pkl').as_posix()
    assert info_digests(config) == {path: hashlib.sha256(b'first').hexdigest()}
    with monkeypatch.context() as patch:  # the second time nothing is read
        patch.setattr(fingerprint.hashlib, 'sha256', None)
        assert set(info_digests(config)) == {path}
    file.write_bytes(b'other')
    os.utime(file, ns=(1, 1))
    assert info_digests(config) == {path: hashlib.sha256(b'other').hexdigest()}
    assert info_digests({}) == {}


def test_digests_stand_under_the_path_that_the_config_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'a.pkl').write_bytes(b'x')
    assert list(info_digests({'train_dataloader': {'dataset': {
        'data_root': 'data/', 'ann_file': 'a.pkl'}}})) == ['data/a.pkl']


def test_what_was_written_is_compared_without_its_tensors(tmp_path):
    state = {'a': torch.zeros(2)}
    path = tmp_path / 'c.pth'
    torch.save({'state_dict': state, 'meta': {META_KEY: make_fingerprint(
        state, version=__version__, class_lists={'classes': ['x', 'y']})}}, path)
    old = fingerprint_of(torch.load(path, weights_only=True))
    new = make_fingerprint(state, version=__version__, class_lists={'classes': ['y', 'x']})
    assert explain_change(old, old) == ()
    assert [change.kind for change in explain_change(old, new)] == ['meaning']


def test_class_lists_of_other_programs():
    assert class_lists_of({'dataset_meta': {'classes': ('a', 'b')}}) == {'classes': ['a', 'b']}
    assert class_lists_of({'CLASSES': ('a',)}) == {'classes': ['a']}
    assert class_lists_of(None) == {}


def test_tensors_that_differ_are_named_as_shortly_as_can_be():
    same = match({'a.w': torch.ones(2)}, {'a.w': torch.ones(2)})
    assert explain_tensors(same) == []
    other = match({'a.w': torch.ones(3), 'heads.map.w': torch.ones(1)},
                  {'a.w': torch.ones(2), 'heads.old.w': torch.ones(1)})
    assert explain_tensors(other) == ['new heads.map.*', 'gone heads.old.*', 'a.w (2,) -> (3,)']


def test_many_tensors_are_named_six_at_most():
    many = match({f'part{i}.w': torch.ones(1) for i in range(20)}, {'part0.w': torch.ones(1)})
    names = explain_tensors(many)
    assert len(names) == 7 and names[-1] == 'and 13 more'
