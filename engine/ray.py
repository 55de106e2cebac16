"""Keep the documented import ``combicam.engine.ray.Explain``."""

from combicam.engine.distribution.ray_data import Explain as Explain
