"""Points of a training: found by step, in the order of the steps, and nothing else is one."""

from gradex.adapters.points import point_folder, points_in


def test_points_are_in_the_order_of_their_steps(tmp_path):
    assert points_in(tmp_path) == {}
    for step in (100, 9, 30):
        point_folder(tmp_path, step).mkdir(parents=True)
    for name in ("7.part", "notes", "-1"):
        (tmp_path / "points" / name).mkdir()
    (tmp_path / "points/8").touch()
    assert list(points_in(tmp_path)) == [9, 30, 100]
    assert points_in(tmp_path)[9] == tmp_path / "points/9"
