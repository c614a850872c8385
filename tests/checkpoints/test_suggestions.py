"""Hints: of equal shape always, the most alike name, nothing where no shape agrees."""
import random
from difflib import SequenceMatcher

from bevfusion_enhanced.checkpoints.suggestions import suggest


def test_only_equal_shapes_are_suggested():
    assert suggest([('a.w', (2, 3))], [('a.w2', (3, 2)), ('zzz', (2, 3))]) == (('a.w', 'zzz'),)
    assert suggest([('a.w', (2, 3))], [('a.w2', (3, 2))]) == ()
    assert suggest([], [('a', (1,))]) == ()


def test_the_most_alike_name_is_found_whatever_was_passed_over():
    numbers = random.Random(0)
    words = ['backbone', 'neck', 'block', 'conv', 'bn', 'weight', 'bias', '0', '1', '2']
    names = sorted({'.'.join(numbers.choices(words, k=numbers.randint(2, 6))) for _ in range(60)})
    theirs, ours = names[::2], names[1::2]

    def ratio(name, other):
        return SequenceMatcher(None, other, name, autojunk=False).ratio()

    found = suggest([(name, (1,)) for name in ours], [(name, (1,)) for name in theirs])
    assert [hint.missing for hint in found] == ours
    for hint in found:
        assert ratio(*hint) == max(ratio(hint.missing, other) for other in theirs)
