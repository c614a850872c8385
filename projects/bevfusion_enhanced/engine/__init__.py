"""Hooks and runner glue: what connects `checkpoints/` and the command lines to MMEngine."""
from .partial_load_hook import PartialLoadCheckpointHook
from .progress_hook import RichProgressHook

__all__ = ['PartialLoadCheckpointHook', 'RichProgressHook']
