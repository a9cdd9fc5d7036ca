"""Points of a training: places on the way of an adapter from its beginning to its end.

points/<step>/       after so many steps: the adapter in the folder of a training, the gradients
                     that were taken at it in that of a gradient store
"""

from pathlib import Path

POINTS = "points"


def point_folder(folder: Path, step: int) -> Path:
    return folder / POINTS / str(step)


def points_in(folder: Path) -> dict[int, Path]:
    """Step -> folder of every point that is there, the earliest first."""
    found = [place for place in (folder / POINTS).glob("*") if place.is_dir()]
    steps = sorted(int(place.name) for place in found if place.name.isdecimal())
    return {step: point_folder(folder, step) for step in steps}
