"""Which of the placed agents the ego's LiDAR can see at the probe times of a scene.

An estimate from the agents' middles: a building hides everything behind it; a wide agent hides what
does not rise above the line over its top. Global frame, metres.
Shapes: F probes, A agents, S screens.
"""
import numpy as np
import shapely

from bevfusion_enhanced.synthetic.occupancy import entry_shares

LIDAR_HEIGHT = 1.84
_SCREEN_WIDTH = 1.5
"""Only agents wider than this hide others."""


class Sightlines:
    """Keeps who is seen up to date while agents are added.

    Args:
        origins: (F, 2) positions of the ego at the probes.
        walls: Footprints of the buildings.
    """

    def __init__(self, *, origins: np.ndarray, walls: shapely.Geometry) -> None:
        self._origins, self._walls = origins, walls
        self._targets = np.empty((0, len(origins), 2))
        self._heights = np.empty(0)
        self._screens = np.empty((0, len(origins), 5))
        self._tops = np.empty(0)
        self.seen = np.empty((0, len(origins)), bool)
        """(A, F) whether an agent is seen, in the order of adding."""

    def points_seen(self, points: np.ndarray, heights: np.ndarray, *, probes: slice = slice(None)
                    ) -> np.ndarray:
        """Whether things are seen.

        Args:
            points: (N, F, 2) where they are at the probes.
            heights: (N,).
            probes: Which F of the probes.

        Returns:
            (N, F) bool.
        """
        origins = self._origins[probes]
        rays = np.stack([np.broadcast_to(origins, points.shape), points], axis=2)
        seen = ~shapely.intersects(self._walls, shapely.linestrings(rays.reshape(-1, 2, 2)))
        seen = seen.reshape(points.shape[:2])
        if len(self._screens):
            shares = entry_shares(origins, points[:, None], self._screens[:, probes])  # (N, S, F)
            seen &= ~_hides(shares, heights[:, None, None], self._tops[:, None]).any(1)
        return seen

    def newly_hidden(self, rectangles: np.ndarray, height: float) -> np.ndarray:
        """(A, F) which agents in sight a further agent, (F, 5) and so high, would hide."""
        if rectangles[0, 3] <= _SCREEN_WIDTH or not len(self._targets):
            return np.zeros_like(self.seen)
        shares = entry_shares(self._origins, self._targets, rectangles)
        return self.seen & _hides(shares, self._heights[:, None], height)

    def add(self, rectangles: np.ndarray, height: float) -> None:
        """Add an agent with footprint (F, 5) and this height."""
        point, heights = rectangles[None, :, :2], np.array([height])
        self.seen = np.concatenate([self.seen & ~self.newly_hidden(rectangles, height),
                                    self.points_seen(point, heights)])
        self._targets = np.concatenate([self._targets, point])
        self._heights = np.concatenate([self._heights, heights])
        if rectangles[0, 3] > _SCREEN_WIDTH:
            self._screens = np.concatenate([self._screens, rectangles[None]])
            self._tops = np.concatenate([self._tops, heights])


def _hides(shares: np.ndarray, heights: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """Whether the line to a target's top passes below the top of a screen, met at `shares`."""
    line = LIDAR_HEIGHT + (heights - LIDAR_HEIGHT) * np.minimum(shares, 1.0)
    return np.isfinite(shares) & (line < tops)
