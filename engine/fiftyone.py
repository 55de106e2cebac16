"""Keep the documented import ``combicam.engine.fiftyone``."""

from combicam.engine.outputs.fiftyone_samples import fiftyone_samples as fiftyone_samples
from combicam.engine.outputs.fiftyone_samples import write_fiftyone as write_fiftyone
