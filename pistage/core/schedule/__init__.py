"""Placement: `decide(view, now)` says which waiting task goes to which agent, an `Explainer` why another one waits.

Both are functions of the view and the time given; nothing here reads a clock, a disk or a socket.
"""

from pistage.core.schedule.deciding import PLACED_AT_ONCE_MAX, Decision, Placement, decide
from pistage.core.schedule.explaining import Explainer, Explanation
from pistage.core.schedule.view import View

__all__ = ["PLACED_AT_ONCE_MAX", "Decision", "Explainer", "Explanation", "Placement", "View", "decide"]
