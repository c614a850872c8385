"""Checkpoints as pure functions on files and state dicts; nothing here knows a runner."""
from importlib import import_module
from typing import Any

# Read when asked for: comparing two configs needs no torch, which takes seconds to import.
_HOMES = {
    'LoadReport': 'matching', 'combine': 'matching', 'fill': 'matching', 'match': 'matching',
    'require_complete': 'matching', 'require_related': 'matching',
    'Change': 'explain', 'explain_change': 'explain', 'safe_to_resume': 'explain',
    'architecture_hash': 'fingerprint', 'explain_tensors': 'fingerprint',
    'fingerprint_of': 'fingerprint', 'info_digests': 'fingerprint',
    'make_fingerprint': 'fingerprint', 'require_readable': 'fingerprint',
    'LoadPlan': 'loading', 'LoadSource': 'loading', 'parse_sources': 'loading',
    'plan_load': 'loading', 'geometry_of': 'geometry', 'weights_of': 'state_dict',
    'convert': 'naming', 'recognise': 'naming', 'translate': 'naming',
    'read_checkpoint': 'storage', 'verify_checkpoint': 'storage', 'write_checkpoint': 'storage',
}

__all__ = sorted(_HOMES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_HOMES[name]}', __name__), name)
