"""The text of a config, as MMEngine keeps it in a checkpoint, read back without executing it."""
import ast
import json
from typing import Any, Dict

from ..errors import CheckpointError

_FLOATS = ('inf', '-inf', 'nan')  # as they are printed, which is no literal


def parse_config_text(text: str) -> Dict[str, Any]:
    """The assignments of a resolved config's text as plain values; nothing in it is called.

    Args:
        text: What `Config.pretty_text` or `Config.dump` gives, in Python or JSON. A value that is
            more than data, such as a function, comes back as its text.

    Raises:
        CheckpointError: It is neither Python nor JSON.
    """
    try:
        if text.lstrip().startswith('{'):
            return dict(json.loads(text))
        body = ast.parse(text).body
        return {target.id: _value(node.value) for node in body if isinstance(node, ast.Assign)
                for target in node.targets if isinstance(target, ast.Name)}
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise CheckpointError('the config kept in the checkpoint cannot be read '
                              f'({type(error).__name__}: {error})') from error


def _value(node: ast.expr) -> Any:
    """What an expression says, where it is made of constants, containers and `dict(...)`."""
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {str(_value(key)): _value(value)
                for key, value in zip(node.keys, node.values, strict=True)}
    if _is_dict_call(node):
        return {item.arg: _value(item.value) for item in node.keywords}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        text = ast.unparse(node)
        return float(text) if text in _FLOATS else text


def _is_dict_call(node: ast.expr) -> bool:
    return (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            and node.func.id == 'dict' and not node.args
            and all(item.arg is not None for item in node.keywords))
