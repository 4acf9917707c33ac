from .agent import Agent
from .artifact import Artifact
from .environment import ExecutionEnvironment
from .event import Event, Fenced
from .session import Session
from .states import NotAllowed, NotPossible
from .turn import Turn

__all__ = [
    "Agent",
    "Artifact",
    "Event",
    "ExecutionEnvironment",
    "Fenced",
    "NotAllowed",
    "NotPossible",
    "Session",
    "Turn",
]
