"""Tags name folders on every system."""
import datetime

import pytest

from bevfusion_enhanced.errors import ConfigError
from bevfusion_enhanced.experiments.tags import automatic_tag, check_tag


@pytest.mark.parametrize('tag', ['default', 'lr-0.1', 'a_b.c', '20261120', 'x' * 80])
def test_names_of_folders_are_tags(tag):
    assert check_tag(tag) == tag


@pytest.mark.parametrize('tag', ['', 'a b', 'a/b', '..', 'a\\b', 'ä', 'a:b', 'end.', 'NUL',
                                 'con.txt', 'x' * 81, 'a\n'])
def test_everything_else_is_refused(tag):
    with pytest.raises(ConfigError, match='--extra-tag'):
        check_tag(tag)


@pytest.mark.parametrize('differences', [
    [], [('optim_wrapper.optimizer.lr', 0.0004)],
    [('model.heads.map.classes', ['a', 'b / c']), ('x', None), ('y' * 70, 'z' * 70)],
])
def test_automatic_tags_are_tags_that_say_when_and_what(differences):
    tag = automatic_tag(differences, now=datetime.datetime(2026, 11, 20, 15, 30))
    assert check_tag(tag) == tag and tag.startswith('20261120-153000')
    if len(differences) == 1:
        assert tag.endswith('lr-0.0004')


def test_automatic_tags_name_what_matters_first_and_whole():
    now = datetime.datetime(2026, 11, 20, 15, 30)
    changed = [('val_dataloader.num_workers', 0), ('train_dataloader.dataset.data_root', 'x' * 60),
               ('train_dataloader.dataset.indices', 12), ('max_epochs', 3),
               ('train_cfg.max_epochs', 3), ('optim_wrapper.optimizer.lr', 5e-4)]
    assert automatic_tag(changed, now=now) == '20261120-153000_lr-0.0005_indices-12_max_epochs-3'
