"""Numbers as people read them."""

_BYTES = ('B', 'kB', 'MB', 'GB', 'TB')


def readable_size(size: float) -> str:
    """Bytes with a unit of thousands, to three digits."""
    for unit in _BYTES[:-1]:
        if size < 999.5:
            return f'{size:.3g} {unit}'
        size /= 1000
    return f'{size:.3g} {_BYTES[-1]}'
