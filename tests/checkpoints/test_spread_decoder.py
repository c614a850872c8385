"""A checkpoint with one decoder gives each task's own decoder its beginning."""
from collections import OrderedDict

import torch

from bevfusion_enhanced.checkpoints.loading import parse_sources, plan_load
from bevfusion_enhanced.checkpoints.task_decoders import spread_decoder


def state(*names):
    return OrderedDict((name, torch.full((2, 3), float(i))) for i, name in enumerate(names))


SHARED = state('fuser.0.weight', 'decoder.backbone.w', 'decoder.neck.w')
OWN = state('fuser.0.weight', *(f'task_decoders.{task}.{part}.w' for task in ('object', 'map')
                                for part in ('backbone', 'neck')))


def test_every_task_gets_the_same_tensors():
    before = list(SHARED)
    weights, note = spread_decoder(SHARED, OWN)
    assert list(weights) == list(OWN) and list(SHARED) == before
    for task in ('object', 'map'):
        for part in ('backbone', 'neck'):
            assert weights[f'task_decoders.{task}.{part}.w'] is SHARED[f'decoder.{part}.w']
    assert 'object, map' in note


def test_where_names_agree_nothing_is_done():
    for weights, model in ((SHARED, SHARED), (OWN, OWN), (OWN, SHARED),
                           (state('heads.map.w'), OWN)):
        assert spread_decoder(weights, model) == (weights, None)


def test_a_load_reuses_all_of_it_and_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({'state_dict': SHARED}, 'a.pth')
    plan = plan_load(OWN, parse_sources(['a.pth']), parameters=OWN.keys(), geometry={},
                     class_lists={})
    assert plan.report.complete and not plan.report.unexpected
    assert torch.equal(plan.weights['task_decoders.map.neck.w'], SHARED['decoder.neck.w'])
    assert any('where those of object, map begin' in note for note in plan.report.notes)
    assert plan.report.module_sources['task_decoders.map.neck'] == 'a.pth'
