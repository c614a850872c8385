"""How a scene is lit, and what that does to colours.

Colours are RGB in 0..255 as a camera writes them; lights are factors of a surface's own colour.
Directions are unit vectors of the global frame (z up).
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Light:
    """Sun, sky and lamps of one scene.

    Attributes:
        sun_direction: (3,) unit vector towards the sun (or the moon).
        sun: Strength of the sun on a surface that faces it.
        ambient: Strength of the light that reaches every surface.
        lamps: Strength, beside the camera, of the lamp light that the ego vehicle carries along.
        glow: Strength of what shines by itself: lights of vehicles, lit windows.
        zenith: (3,) colour of the sky overhead.
        horizon: (3,) colour of the sky at the horizon, and of haze.
        visibility: Distance in metres over which haze takes 63 % of a surface's colour.
        noise: Standard deviation of the sensor noise, in grey levels.
    """
    sun_direction: np.ndarray
    sun: float
    ambient: float
    lamps: float
    glow: float
    zenith: np.ndarray
    horizon: np.ndarray
    visibility: float
    noise: float

    def on_normals(self, normals: np.ndarray) -> np.ndarray:
        """Factors (N,) of surfaces with unit normals (N, 3) that see the sun, lamps left out."""
        facing = np.maximum(normals @ self.sun_direction, 0.0)
        # Surfaces turned away differ a little too, or the faces of a box would merge in its shade.
        return self.ambient * (1 + 0.15 * normals[:, 2] + 0.08 * normals[:, 0]) + self.sun * facing

    def from_lamps(self, distance: np.ndarray) -> np.ndarray:
        """Factors of surfaces at these distances from the camera, in metres."""
        return self.lamps / (1 + (distance / 12.0) ** 2)


def daylight(*, azimuth: float, elevation: float, cloud: float = 0.0) -> Light:
    """Light of a day.

    Args:
        azimuth: Of the sun, radians counter-clockwise from global +x.
        elevation: Of the sun, radians above the horizon.
        cloud: Share of the sun's light that clouds spread over the sky, 0..1.
    """
    direct = 0.75 * (1 - cloud)
    grey = np.array([185.0, 190.0, 197.0])
    return Light(sun_direction=_direction(azimuth, elevation), sun=direct,
                 ambient=0.95 - 0.55 * direct, lamps=0.0, glow=0.65,
                 zenith=(1 - cloud) * np.array([84.0, 132.0, 205.0]) + cloud * grey,
                 horizon=(1 - cloud) * np.array([198.0, 212.0, 226.0]) + cloud * grey * 1.08,
                 visibility=350.0 - 150.0 * cloud, noise=2.5)


def night(*, azimuth: float = 1.0) -> Light:
    """Light of a night in a town: a faint moon, street lamps, and the ego vehicle's own lamps."""
    return Light(sun_direction=_direction(azimuth, 0.9), sun=0.07, ambient=0.17, lamps=0.5,
                 glow=1.1, zenith=np.array([6.0, 8.0, 18.0]),
                 horizon=np.array([26.0, 24.0, 30.0]), visibility=250.0, noise=5.0)


def _direction(azimuth: float, elevation: float) -> np.ndarray:
    flat = np.cos(elevation)
    return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
