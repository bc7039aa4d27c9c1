"""Keep the disk small and the data sound: clean-up, summaries, archive, verify, recover.

>>> from replaylab.archive import run_retention, daily_summary, verify, recover
"""

from replaylab.archive.depart import archived
from replaylab.archive.recover import RecoverReport, recover
from replaylab.archive.retention import RetentionScheduler, last_report, run_retention
from replaylab.archive.summary import daily_summary
from replaylab.archive.verify import VerifyReport, verify

runRetentionJob = run_retention  # noqa: N816 - the specification's name

__all__ = [
    "RecoverReport",
    "RetentionScheduler",
    "VerifyReport",
    "archived",
    "daily_summary",
    "last_report",
    "recover",
    "runRetentionJob",
    "run_retention",
    "verify",
]
