"""What is in the way is moved, and stays whole."""
from bevfusion_enhanced.experiments.aside import free_path, move_aside


def test_folders_are_moved_whole_and_never_onto_each_other(tmp_path):
    folder = tmp_path / 'run'
    assert move_aside(folder) is None
    folder.mkdir()
    assert move_aside(folder) is None
    moved = []
    for text in ('first', 'second', 'third'):
        folder.mkdir(exist_ok=True)
        (folder / 'summary.json').write_text(text)
        moved.append(move_aside(folder))
        assert not folder.exists() and moved[-1].name.startswith('run_2')
    assert [(path / 'summary.json').read_text() for path in moved] == ['first', 'second', 'third']


def test_a_free_path_does_not_exist(tmp_path):
    assert free_path(tmp_path / 'a') == tmp_path / 'a'
    (tmp_path / 'a').touch()
    (tmp_path / 'a_2').touch()
    assert free_path(tmp_path / 'a') == tmp_path / 'a_3'
