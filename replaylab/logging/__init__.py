"""Write: the central logger, and the streams under it. Imports neither pandas, polars, numba nor Jupyter.

>>> from replaylab.logging import Logger
"""

from replaylab.logging.handles import Handle
from replaylab.logging.health import LogStats
from replaylab.logging.locks import rotate_lock
from replaylab.logging.logger import Logger
from replaylab.logging.stream_types import StreamType
from replaylab.logging.streams import FileStreamManager, write_atomic

__all__ = ["FileStreamManager", "Handle", "LogStats", "Logger", "StreamType", "rotate_lock", "write_atomic"]
