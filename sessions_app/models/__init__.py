from .agent import Agent
from .artifact import Artifact
from .audit import AuditEntry, AuditHead
from .environment import ExecutionEnvironment
from .event import Event, Fenced
from .session import Session
from .states import NotAllowed, NotPossible
from .turn import Turn

__all__ = [
    "Agent",
    "Artifact",
    "AuditEntry",
    "AuditHead",
    "Event",
    "ExecutionEnvironment",
    "Fenced",
    "NotAllowed",
    "NotPossible",
    "Session",
    "Turn",
]
