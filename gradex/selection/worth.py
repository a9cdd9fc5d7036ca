"""When one source more is worth having: how stepwise searches know where to stop."""

from dataclasses import dataclass
from typing import Any

from gradex.data.subsets import Subset
from gradex.estimators.gains import GainInterval

MIN_GAIN = 0.01


@dataclass(frozen=True)
class Gain:
    """What a subset gains by a source, and why that is too little; nothing where it is enough."""

    gain: float
    interval: tuple[float, float] | None = None
    doubt: str = ""

    def recorded(self) -> dict[str, Any]:
        """For a step of a trace."""
        interval = {"interval": list(self.interval)} if self.interval else {}
        return {"gain": self.gain} | interval


@dataclass(frozen=True)
class Worth:
    """Sources are worth having if they lower the score by more than `min_gain` of the whole fall so
    far and, where intervals of gains are known, if that of their gain lies above 0."""

    min_gain: float = MIN_GAIN
    gain_interval: GainInterval | None = None

    def of(self, without: Subset, having: Subset, *, gain: float, fall: float) -> Gain:
        """`fall` is how far the score has come down from the worst one that was seen at first."""
        if gain <= self.min_gain * fall:
            return Gain(gain, doubt=_too_little(gain, self.min_gain))
        if self.gain_interval is None:
            return Gain(gain)
        low, high = map(float, self.gain_interval(without, having))
        doubt = f"the 90% interval of its gain, {low:.4g} to {high:.4g}, is not above 0"
        return Gain(gain, (low, high), doubt if low <= 0 else "")


def _too_little(gain: float, min_gain: float) -> str:
    if gain < 0:
        return f"it would raise the score by {-gain:.4g}"
    return f"its gain of {gain:.4g} is at most {min_gain:g} of the fall so far"
