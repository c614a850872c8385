"""An image file in memory that is decoded once it is known how large it is needed.

A JPEG decoder can leave out the fine half, three quarters or seven eighths of each 8 x 8 block,
which costs it much less than to decode all of it for a resize that throws it away.
"""
import io
from typing import Tuple, Union

import cv2
import numpy as np
from PIL import Image

from bevfusion_enhanced.errors import DataError

_FLAGS = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
          8: cv2.IMREAD_REDUCED_COLOR_8}
REDUCTIONS = tuple(_FLAGS)


class EncodedImage:
    """The bytes of an image file.

    Args:
        data: (n,) uint8.
        path: Where they are from, for messages.
        sample: Token of the sample that they belong to, for messages.
    """

    def __init__(self, data: np.ndarray, *, path: str, sample: str) -> None:
        self.data = data
        self.path = path
        self.sample = sample

    @property
    def size(self) -> Tuple[int, int]:
        """(height, width) of the file, from its header."""
        try:
            with Image.open(io.BytesIO(self.data.data)) as image:
                return image.height, image.width
        except OSError:
            raise self._undecodable() from None

    def decode(self, reduction: int = 1) -> np.ndarray:
        """The image (H, W, 3) uint8 RGB at 1 / `reduction` of its size, one of `REDUCTIONS`.

        Raises:
            DataError: The file is no image, or is cut short.
        """
        flag = _FLAGS[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
        readable = self.data.size and not _cut_short(self.data)
        image = cv2.imdecode(self.data, flag) if readable else None
        if image is None:
            raise self._undecodable()
        cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
        return image

    def _undecodable(self) -> DataError:
        return DataError(f'cannot decode the image of sample {self.sample}: {self.path} '
                         f'({self.data.size} bytes); fetch the file again')


def reduction_for(resize: float) -> int:
    """The largest reduction after which an image that is resized by `resize` still shrinks."""
    return max(reduction for reduction in REDUCTIONS if reduction == 1 or resize * reduction <= 1)


def black_like(image: Union[np.ndarray, EncodedImage]) -> np.ndarray:
    """A black image (H, W, 3) uint8 of the size of the file, or of the decoded image."""
    if isinstance(image, EncodedImage):
        return np.zeros((*image.size, 3), dtype=np.uint8)
    return np.zeros_like(image)


def _cut_short(data: np.ndarray) -> bool:
    """Whether a JPEG lacks its end; decoders only warn and fill the rest with grey."""
    is_jpeg = data[:2].tobytes() == b'\xff\xd8'
    return is_jpeg and b'\xff\xd9' not in data[-1024:].tobytes()
