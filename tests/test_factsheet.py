"""The factsheet's facts and tables; building the PDF needs TeX and is not tested here."""

from pathlib import Path

import pytest

from benchmarks.common import publish
from factsheet import tables
from factsheet.tables import RESULTS, latex, read_result, source, tabular, team, texts
from utils.files import UserError
from utils.submission import Facts, FactsError, Member, read_facts


def facts_file(tmp_path: Path, text: str) -> Path:
    (tmp_path / "submission.yaml").write_text(text)
    return tmp_path / "submission.yaml"


def test_facts_are_read_and_what_is_empty_is_named(tmp_path: Path) -> None:
    record = read_facts(facts_file(tmp_path, "team_id: 8\nmethod: HATFreq\nmembers: [{name: Ada, email: a@b}]"))
    assert record.folder == "team08_HATFreq" and record.members == [Member("Ada", "a@b", "")]
    missing = record.missing()
    assert "members[1].affiliation" in missing and "code" in missing and "team_id" not in missing


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("team_nam: x", "did you mean team_name"),
        ("phone: 1", "does not belong"),
        ("team_id: eight", "team_id must be of the type int"),
        ("members: [{nme: x}]", "did you mean name"),
        ("- a list", "got list"),
        ("a: [", "is not YAML"),
    ],
)
def test_wrong_facts_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(FactsError, match=says):
        read_facts(facts_file(tmp_path, text))


def test_the_repositorys_own_facts_can_be_read() -> None:
    record = read_facts()
    assert record.folder == "team08_HATFreq" and record.score_test


def test_text_is_escaped() -> None:
    assert latex("50 % of `a_b` & #1 {x} $y\\z") == r"50 \% of \texttt{a\_b} \& \#1 \{x\} \$y\textbackslash{}z"
    assert latex("-0.5 ± 0.1, 64x64, x8, 2.0x, e-07, a-b") == (
        r"$-$0.5 $\pm$ 0.1, 64$\times$64, $\times$8, 2.0$\times$, e-07, a-b"
    )


def test_a_table_has_a_rule_between_its_blocks() -> None:
    text = tabular([[["a", "b"], ["1", "2"]], [["a", "b"], ["3", "4"]]], "lr", "below")
    assert text.splitlines()[0] == r"\begin{tabular}{lr}" and text.count(r"\midrule") == 2
    assert r"3 & 4 \\" in text and text.endswith("\\end{tabular}\nbelow\n")


def test_what_the_team_lacks_is_a_visible_gap() -> None:
    text = team(Facts(team_id=8, team_name="Four", members=[Member("Ada", "a_b@c", "")], code="here"))
    assert r"\textbf{Members, the leader first} & \gap{members} \\" in text  # an affiliation is missing
    assert r"\textbf{Code} & here \\" in text and r"\gap{user\_names}" in text


def test_every_table_states_its_weights_and_how_it_was_measured() -> None:
    results = texts()
    assert set(results) == {"quality", "speed", "complexity", "stages", "team", "numbers"}
    sha256 = read_result(RESULTS / "quality.md").setting["weights"].split("`")[1]
    assert f"weights: sha256 {sha256}" in results["quality"]
    assert "random weights" in results["speed"]
    assert all("at commit" in results[name] for name in ("quality", "speed", "complexity"))


def test_a_result_is_read_as_it_was_published(tmp_path: Path) -> None:
    rows = [{"a": "x", "": ""}, {"a": "y: z", "": "2"}]
    publish(tmp_path / "r.md", {"first": rows, "second": rows[1:]}, {"command": "`c`", "data": "a: b"})
    result = read_result(tmp_path / "r.md")
    assert result.tables == {"first": [["a", ""], ["x", ""], ["y: z", "2"]], "second": [["a", ""], ["y: z", "2"]]}
    assert result.setting == {"command": "`c`", "data": "a: b"}
    with pytest.raises(UserError, match=r"absent\.md"):
        read_result(tmp_path / "absent.md")


def test_a_source_names_program_weights_and_commit() -> None:
    setting = {"command": "`python -m benchmarks.x --a b`", "versions": "torch 2", "machine": "m", "measured": "d"}
    text = source({**setting, "commit": "c", "weights": "w.safetensors, sha256 `abababababab`"})
    assert "sha256 abababababab;" in text and r"\texttt{python -m benchmarks.x}" in text and "commit c" in text


@pytest.mark.artefacts
def test_the_committed_tables_are_of_the_results() -> None:
    for name, text in texts().items():
        assert (tables.OUT / f"{name}.tex").read_text() == text, "run bash scripts/build_factsheet.sh"
