"""Write: the central logger, and the streams under it. Imports neither pandas, polars, numba nor Jupyter.

>>> from replaylab.logging import Logger
"""

from replaylab.logging.fast_check import Redactor
from replaylab.logging.files import FileStreamManager, Handle, rotate_lock
from replaylab.logging.health import LogStats, judge
from replaylab.logging.logger import Logger, StreamType

__all__ = [
    "FileStreamManager",
    "Handle",
    "LogStats",
    "Logger",
    "Redactor",
    "StreamType",
    "judge",
    "rotate_lock",
]
