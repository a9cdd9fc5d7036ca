"""Steps of a search in a few words, whatever the method and the names."""

from toys import NAMES, additive

from gradex.reporting import paths
from gradex.reporting.html import render
from gradex.selection.backward import backward_select
from gradex.selection.forward import forward_select
from gradex.selection.swap import swap_select


def shown(method, choice, **more):
    return paths.path_of({"method": method, "trace": choice.trace, **more})


def test_forward_begins_with_no_source():
    choice = forward_select(additive, NAMES)
    path = shown("forward", choice, base_value=10.0)
    assert [step["did"] for step in path] == ["no source", "a", "e", "c"]
    assert [step["value"] for step in path] == [10, 7, 5, 4]
    assert len(shown("forward", choice)) == 3  # nothing is known of no source


def test_backward_begins_with_all():
    path = shown("backward", backward_select(additive, NAMES), base_value=10.0)
    assert [step["did"] for step in path] == ["6 sources", "− b", "− f", "− d"]


def test_a_swap_tells_both_sides():
    path = shown("swap", swap_select(additive, NAMES, start="b"))
    assert path[0]["did"] == "1 sources" and path[1]["did"] == "+ a"
    assert paths.did({"added": ["a"], "removed": ["b"]}) == "+ a  − b"
    assert paths.did({"added": ["a", "n\nl"], "removed": []}) == "+ a  + n l"


def test_a_ranking_by_random_sets_is_no_path():
    assert paths.path_of({"method": "random_ensemble", "trace": [{"added": "a"}]}) == []
    assert paths.path_of({}) == []


def test_the_page_says_why_it_ended_and_what_was_skipped(report):
    report["selection"]["trace"][-1]["stop"] = {"reason": "<b>: too little"}
    report["selection"]["trace"][-1] |= {"tried": 20, "skipped": 1234}
    text = render(report)
    assert "The search ended: &lt;b&gt;: too little." in text
    assert "tried 20 candidates and skipped 1,234" in text


def test_each_path_is_on_its_page(report):
    for method, select in (("forward", forward_select), ("backward", backward_select)):
        report["selection"] |= {"method": method, "trace": select(additive, NAMES).trace}
        text = render(report)
        assert paths.HOW[method] in text and 'id="path"' in text
        assert ("− b<" in text) == (method == "backward")
