"""Checkpoints as pure functions on files and state dicts; nothing here knows a runner."""
from .fingerprint import architecture_hash, explain_change, make_fingerprint
from .matching import LoadReport, combine, fill, match, require_complete, require_related
from .state_dict import weights_of
from .storage import read_checkpoint, verify_checkpoint, write_checkpoint

__all__ = [
    'LoadReport', 'architecture_hash', 'combine', 'explain_change', 'fill', 'make_fingerprint',
    'match', 'read_checkpoint', 'require_complete', 'require_related', 'verify_checkpoint',
    'weights_of', 'write_checkpoint',
]
