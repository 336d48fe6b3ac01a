"""Store: all statements of the package, over one driver."""

from .bulk import BulkStatements
from .claims import ClaimStatements
from .enqueue import EnqueueStatements
from .inspection import InspectionStatements
from .limits import LimitStatements
from .listing import ListingStatements
from .metadata import MetadataStatements
from .outcomes import OutcomeStatements
from .pauses import PauseStatements
from .queues import QueueStatements
from .samples import SampleStatements
from .schedules import ScheduleStatements
from .states import StateStatements
from .workers import WorkerStatements

__all__ = ["Store"]


class Store(
    EnqueueStatements,
    ClaimStatements,
    OutcomeStatements,
    MetadataStatements,
    QueueStatements,
    PauseStatements,
    ScheduleStatements,
    SampleStatements,
    LimitStatements,
    WorkerStatements,
    BulkStatements,
    StateStatements,
    ListingStatements,
    InspectionStatements,
):
    """One method for each file of ``queries/``, named as the file. It decides nothing: callers do."""
