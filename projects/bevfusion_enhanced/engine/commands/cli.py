"""What every command line shares: a mistake of the user ends in one line, not in a traceback."""
import re
import sys
from typing import Callable, Optional, TypeVar

from ...errors import ConfigError, UserError

T = TypeVar('T')

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130

_UNKNOWN_TYPE = re.compile(r'([^\s\'"]+) is not in the (\S+?)(?:::([\w ]+?))? registry')
_WRONG_ARGUMENT = re.compile(r'^(\w+)(?:\.__init__)?\(\) (.*(?:unexpected keyword|missing \d+ ).*)')
_BUILDER = 'build_functions.py'  # where MMEngine calls the constructors that a config names


def run_cli(main: Callable[[], T]) -> int:
    """Call `main` and return the exit status for the shell.

    A `UserError`, wherever it was raised (also in a worker of a data loader), and a config that
    names a type or an argument that does not exist are printed as `error: ...` on standard error
    and answer 2. Everything else is a bug and keeps its traceback.
    """
    try:
        main()
    except KeyboardInterrupt:
        print('error: interrupted', file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f'error: {message}', file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def user_message(error: BaseException) -> Optional[str]:
    """The one line that a user needs, or None where the error is not the user's."""
    if isinstance(error, UserError):
        return _innermost(str(error))
    config_error = _as_config_error(error)
    if config_error is not None:
        return str(config_error)
    if isinstance(error.__cause__, UserError):
        return user_message(error.__cause__)
    return None


def _innermost(message: str) -> str:
    """The message of the error itself, out of a traceback that a worker process sent."""
    if 'Traceback (most recent call last)' not in message:
        return ' '.join(message.split())
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return re.sub(r'^[\w.]*(?:Error|Exception): ', '', lines[-1])


def _as_config_error(error: BaseException) -> Optional[ConfigError]:
    """A config that names a class or an argument that does not exist, as MMEngine says it."""
    message = str(error.args[0]) if error.args else ''
    unknown = _UNKNOWN_TYPE.search(message)
    if isinstance(error, KeyError) and unknown:
        registry = unknown.group(3) or unknown.group(2)
        return ConfigError(f'the config names the type {unknown.group(1)!r}, which is not '
                           f'registered as a {registry}; check its spelling and custom_imports')
    wrong = _WRONG_ARGUMENT.match(message)
    if isinstance(error, TypeError) and wrong and _raised_in(error).endswith(_BUILDER):
        return ConfigError(f'the config of {wrong.group(1)} does not fit it: {wrong.group(2)}')
    return None


def _raised_in(error: BaseException) -> str:
    """The file whose code raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_filename if trace else ''
